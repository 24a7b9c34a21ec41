# SPDX-License-Identifier: Apache-2.0
"""Python's search for cyclic garbage, once per training step instead of whenever many objects have been made.

A step makes hundreds of objects per response and drops them all at its end. Python's collector, left to itself, walks
through those in use again and again: a third of the controller's time, and more per response the more there are.
"""

from __future__ import annotations

import gc
from types import TracebackType


class StepwiseGarbage:
    """Switches automatic collection off within a `with` block; `collect` does it by hand.

    What exists at the beginning (modules, models, engines) is set aside and not looked at again.

    Example:
        >>> with StepwiseGarbage() as garbage:
        ...     garbage.collect()
    """

    def __enter__(self) -> StepwiseGarbage:
        """Collect once, set the rest aside, switch automatic collection off."""
        self._was_enabled = gc.isenabled()
        gc.collect()
        gc.freeze()
        gc.disable()
        return self

    def collect(self) -> None:
        """Free the cycles that were made since; to be called once per step."""
        gc.collect()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the collector as it was found."""
        gc.unfreeze()
        if self._was_enabled:
            gc.enable()
