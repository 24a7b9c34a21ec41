# SPDX-License-Identifier: Apache-2.0
"""An asyncio event loop in a thread of its own, for a synchronous program that has concurrent work to wait for."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")

_GOODBYE_S = 1.0
"""What cancelled coroutines are given to end, of the time that `close` waits for the thread."""


class BackgroundLoop:
    """Runs coroutines while the calling thread does something else.

    Example:
        >>> loop = BackgroundLoop("rollout")
        >>> future = loop.submit(asyncio.sleep(0, result=1))
        >>> future.result(timeout=5)
        1
        >>> loop.close()
    """

    def __init__(self, name: str) -> None:
        """Start the thread.

        Args:
            name: Thread name, shown by debuggers.
        """
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def submit(self, work: Coroutine[Any, Any, Result]) -> concurrent.futures.Future[Result]:
        """Start a coroutine.

        Args:
            work: The coroutine.

        Returns:
            A future of the calling thread's kind; its exception is the coroutine's.
        """
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def run(self, work: Coroutine[Any, Any, Result], timeout_s: float | None = None) -> Result:
        """Start a coroutine and wait for it.

        Args:
            work: The coroutine.
            timeout_s: Longest wait in seconds; None waits for ever.

        Returns:
            What the coroutine returns.

        Raises:
            TimeoutError: It took longer; the coroutine is cancelled.
        """
        future = self.submit(work)
        try:
            return future.result(timeout_s)
        except concurrent.futures.TimeoutError:
            future.cancel()
            raise

    def close(self) -> None:
        """Stop the loop and its thread; unfinished coroutines are cancelled, later ones refused with a RuntimeError."""
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._cancel_and_stop(), self._loop)
            self._thread.join(timeout=5)
        if not self._thread.is_alive():
            self._loop.close()

    async def _cancel_and_stop(self) -> None:
        """Let every coroutine end by its own `finally`, as far as it does so at once."""
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        if rest:
            await asyncio.wait(rest, timeout=_GOODBYE_S)
        self._loop.stop()
