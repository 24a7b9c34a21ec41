# SPDX-License-Identifier: Apache-2.0
"""Runs commands a few at once, tells how far they are, and ends what is left when it is ended itself."""

from __future__ import annotations

import datetime
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from recipe.miniature.provenance import commit
from recipe.miniature.runs import RUN_FILE, PlannedRun, read_metrics, write_json

ACCURACY = "val/acc/mean@"
_POLL_S = 0.5
_GRACE_S = 30.0
_TAIL_LINES = 12
_NEWS_S = 60.0


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Args:
        run: The run.
        seconds: How long it took.
        failure: Why it does not count; empty when it does.
    """

    run: PlannedRun
    seconds: float
    failure: str

    @property
    def log(self) -> Path:
        """What the run printed."""
        return self.run.folder / "train.log"

    def log_tail(self) -> str:
        """Give the end of what the run printed."""
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL_LINES:])


@dataclass
class _Running:
    run: PlannedRun
    process: subprocess.Popen[bytes]
    began: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began


class Launcher:
    """Runs the runs of a comparison.

    Example:
        >>> outcomes = Launcher(command_of, environment_of, repo, Console()).run_all(runs, jobs=2)
    """

    def __init__(
        self,
        command_of: Callable[[PlannedRun], Sequence[str]],
        environment_of: Callable[[PlannedRun], Mapping[str, str]],
        repo: Path,
        console: Console,
        *,
        limit_s: float,
        start_gap_s: float = 5.0,
    ) -> None:
        """Remember how runs are started.

        Args:
            command_of: Program and arguments of a run.
            environment_of: Its environment.
            repo: Where it is called.
            console: Is told of progress.
            limit_s: A run that takes longer is ended and counts as failed.
            start_gap_s: Shortest time between two starts: programs that start a Ray at once may pick the same port.
        """
        self._command_of, self._environment_of = command_of, environment_of
        self._repo, self._console, self._limit_s, self._jobs = repo, console, limit_s, 1
        self._start_gap_s = start_gap_s
        self._running: list[_Running] = []
        self._outcomes: list[Outcome] = []
        self._last_start = self._last_news = time.monotonic()

    def run_all(self, runs: Sequence[PlannedRun], jobs: int) -> list[Outcome]:
        """Run all.

        Args:
            runs: In the order in which they start.
            jobs: How many at once.

        Returns:
            How they ended, in the order of their ends.
        """
        waiting, self._jobs = list(runs), min(jobs, max(1, len(runs)))
        try:
            while waiting or self._running:
                rested = time.monotonic() - self._last_start >= self._start_gap_s or not self._running
                if waiting and len(self._running) < jobs and rested:
                    self._start(waiting.pop(0))
                self._collect(len(runs))
                time.sleep(_POLL_S)
        finally:
            _end([running.process for running in self._running])
        return self._outcomes

    def _start(self, run: PlannedRun) -> None:
        run.folder.mkdir(parents=True, exist_ok=True)
        record = {
            "method": run.method.name,
            "seed": run.seed,
            "arguments": run.arguments,
            "commit": commit(self._repo),
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        write_json(run.folder / RUN_FILE, record)
        with (run.folder / "train.log").open("wb") as log:
            process = subprocess.Popen(
                list(self._command_of(run)),
                cwd=self._repo,
                env=dict(self._environment_of(run)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._running.append(_Running(run, process))
        self._last_start = time.monotonic()
        self._say(f"{run.name}: started")

    def _collect(self, total: int) -> None:
        for running in list(self._running):
            too_long = running.seconds > self._limit_s
            if running.process.poll() is None and not too_long:
                continue
            _end([running.process])
            self._running.remove(running)
            failure = _failure(running, f"ended after {self._limit_s / 60:g} minutes" if too_long else "")
            self._outcomes.append(Outcome(running.run, running.seconds, failure))
            self._say(f"{len(self._outcomes):>3}/{total} {running.run.name}: {failure or _story(running.run)}")
            self._say_rest(total)
        if self._running and time.monotonic() - self._last_news > _NEWS_S:
            self._last_news = time.monotonic()
            self._say("    now " + ", ".join(f"{each.run.name} step {each.run.last_step}" for each in self._running))

    def _say_rest(self, total: int) -> None:
        """Tell how long it will still take, by the pace so far."""
        done, left = len(self._outcomes), total - len(self._outcomes)
        if left:
            per_run = sum(outcome.seconds for outcome in self._outcomes) / done
            self._say(f"    about {left * per_run / self._jobs / 60:.0f} minutes to go")

    def _say(self, text: str) -> None:
        now = datetime.datetime.now().strftime("%H:%M:%S")
        self._console.print(f"{now} {text}", markup=False, highlight=False, soft_wrap=True)


def _failure(running: _Running, known: str) -> str:
    """Why a run that has ended does not count; empty when it does."""
    if known:
        return known
    if running.process.returncode != 0:
        return f"exit code {running.process.returncode} after step {running.run.last_step}"
    if not running.run.is_finished:
        return f"ended at step {running.run.last_step} of {running.run.sizes.steps}"
    return ""


def _story(run: PlannedRun) -> str:
    """Say in a line what a finished run did."""
    rows = read_metrics(run.folder)
    values = [value for row in rows for key, value in row.items() if key.startswith(ACCURACY)]
    return f"accuracy {values[0]:.3f} -> {values[-1]:.3f}" if values else "finished"


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """End programs with all that they started, gently first, and wait for them."""
    groups = [process.pid for process in processes if process.poll() is None]
    for number in (signal.SIGTERM, signal.SIGKILL):
        for group in groups:
            _signal_group(group, number)
        deadline = time.monotonic() + _GRACE_S
        # the shell in front ends at once, the trainer behind it first ends its Ray
        while groups and time.monotonic() < deadline:
            time.sleep(_POLL_S)
            for process in processes:
                process.poll()  # a child that nobody waits for stays in its group
            groups = [group for group in groups if _signal_group(group, 0)]


def _signal_group(group: int, number: int) -> bool:
    """Signal a process group; returns whether there is one."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True
