# SPDX-License-Identifier: Apache-2.0
"""Seconds per named stage; it knows nothing of what a stage does, nor of devices (callers synchronise if they must)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class StageTimer:
    """Adds up wall-clock seconds per stage name.

    Stages may nest; each name counts its own whole span, so nested seconds are in both names.

    Example:
        >>> timer = StageTimer()
        >>> with timer("gen"):
        ...     pass
        >>> sorted(timer.seconds)
        ['gen']
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time the body of a `with` statement, also when it raises.

        Args:
            name: Stage name; seconds of the same name add up.
        """
        started_s = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - started_s)

    def add(self, name: str, seconds: float) -> None:
        """Add seconds that were measured elsewhere, for example in a worker.

        Args:
            name: Stage name.
            seconds: Seconds to add.
        """
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def as_metrics(self, prefix: str = "timing_s") -> dict[str, float]:
        """Return the seconds under metric names `<prefix>/<stage>`.

        Args:
            prefix: First part of the metric name.
        """
        return {f"{prefix}/{name}": seconds for name, seconds in self.seconds.items()}
