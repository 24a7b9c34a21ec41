# SPDX-License-Identifier: Apache-2.0
"""The trainer's display: a compact live table with a progress bar on a terminal, some lines in a log file."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

_MOST_LINES = 60  # of a run in a log file, where every training step in a line of its own would drown the rest


@dataclass(frozen=True)
class DisplayColumn:
    """One number of the display.

    Args:
        title: Short heading.
        metric: Metric name.
        style: Python format, e.g. `.3f`.
        is_news: In a log file a step that has this metric always gets its line.
    """

    title: str
    metric: str
    style: str = ".3f"
    is_news: bool = False


class ConsoleDisplay:
    """Shows chosen metrics step by step; also a `MetricWriter`.

    Example:
        >>> display = ConsoleDisplay([DisplayColumn("accuracy", "reward/accuracy/mean")], total_steps=100)
        >>> display.write(1, {"reward/accuracy/mean": 0.4})
        >>> display.close()
    """

    def __init__(
        self, columns: Sequence[DisplayColumn], total_steps: int, first_step: int = 0, console: Console | None = None
    ) -> None:
        """Open the display.

        Args:
            columns: What to show, from left to right.
            total_steps: Training steps of the run.
            first_step: Steps already done, in a resumed run.
            console: Where to write; None for standard output.
        """
        self._columns = list(columns)
        self._rows: list[list[str]] = []
        self._console = console or Console()
        self._is_live = self._console.is_terminal
        self._log_every = max(1, total_steps // _MOST_LINES)
        self._total_steps = total_steps
        self._started_s, self._first_step = time.monotonic(), first_step
        self._progress = Progress(
            TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
        )
        self._task = self._progress.add_task("training", total=total_steps, completed=first_step)
        self._live = Live(self._render(), console=self._console, refresh_per_second=2) if self._is_live else None
        if self._live is not None:
            self._live.start()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """See `MetricWriter.write`."""
        cells = [format(metrics[c.metric], c.style) if c.metric in metrics else "" for c in self._columns]
        self._rows.append([str(step), *cells])
        self._progress.update(self._task, completed=step)
        if self._live is not None:
            self._live.update(self._render())
            return
        is_told = any(column.is_news and cell for column, cell in zip(self._columns, cells, strict=True))
        if not is_told and 0 < step < self._total_steps and step % self._log_every:
            return
        shown = [f"{column.title} {cell}" for column, cell in zip(self._columns, cells, strict=True) if cell]
        done = max(1, step - self._first_step)
        left_s = (time.monotonic() - self._started_s) / done * max(0, self._total_steps - step)
        line = f"step {step}/{self._total_steps} | " + " | ".join(shown) + f" | left {left_s / 60:.1f} min"
        self._console.print(line, highlight=False, soft_wrap=True)

    def note(self, text: str) -> None:
        """Show a line of text above the table.

        Args:
            text: One or more lines.
        """
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def close(self) -> None:
        """Leave the last state on the screen."""
        if self._live is not None:
            self._live.update(self._render())
            self._live.stop()
            self._live = None

    def _render(self) -> Group:
        table = Table(box=None, pad_edge=False)
        for title in ("step", *(column.title for column in self._columns)):
            table.add_column(title, justify="right")
        for row in self._rows[-12:]:
            table.add_row(*row)
        return Group(table, self._progress)
