# SPDX-License-Identifier: Apache-2.0
"""An asyncio event loop on simulated time: where all tasks sleep, the clock jumps to the first one that wakes.

Code that sleeps and waits with time limits runs on it unchanged. Nothing outside the process may be waited for.
"""

from __future__ import annotations

import asyncio
import selectors


class _JumpingSelector(selectors.SelectSelector):
    """Asked to wait, it moves the clock instead."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Return at once; `timeout` is how far away the next timer is.

        Raises:
            RuntimeError: No timer is set: every task waits for another one.
        """
        if timeout is None:
            raise RuntimeError("simulated time stands still: every task waits, and none of them for a time")
        self.now_s += max(0.0, timeout)
        return super().select(0)


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """The loop.

    Example:
        >>> with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        ...     runner.run(asyncio.sleep(3600))
    """

    def __init__(self) -> None:
        """Start at 0 seconds."""
        self._clock = _JumpingSelector()
        super().__init__(self._clock)

    def time(self) -> float:
        """Return the simulated time, seconds."""
        return self._clock.now_s
