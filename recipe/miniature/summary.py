# SPDX-License-Identifier: Apache-2.0
"""From run folders to numbers: what each run reached, and mean and spread over seeds. Draws and writes nothing.

Two sources. The trainer's metrics give accuracy, monitors and times. The dumped validation answers are judged step by
step by `problems.check_steps`, which knows the truth: that tells what no PRM can, and also of runs without a PRM.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from recipe.miniature.methods import BY_NAME
from recipe.miniature.problems import STEP_SEPARATOR, check_steps
from recipe.miniature.runs import (
    COMPARISON_FILE,
    RUN_FILE,
    VALIDATION_FOLDER,
    PlannedRun,
    Sizes,
    plan_runs,
    read_json,
    read_metrics,
)
from verl.utils.errors import UserError

LEVELS = (0.6, 0.7, 0.8)
BASELINE = "rule_only"
ACCURACY_PREFIX = "val/acc/mean@"
# Metrics at the first and the last WINDOW steps are told; names of metrics that a run has not are left out.
WINDOW = 10
MONITORS = {
    "prm/auc/mean": "PRM AUC",
    "prm/on_right/mean": "PRM mean, right answers",
    "prm/on_wrong/mean": "PRM mean, wrong answers",
    "prm/steps_per_response/mean": "steps per response",
    "prm/tokens_per_step/mean": "tokens per step",
    "prm/empty/share": "empty",
    "prm/one_step/share": "one step",
    "prm/repeated/share": "repeated steps",
    "prm/unscored/share": "unscored",
    "response/length/mean": "response tokens",
    "policy/entropy/mean": "entropy",
}


@dataclass(frozen=True)
class Spread:
    """Numbers of several seeds.

    Args:
        values: One of each seed that has it.
    """

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean, NaN without values."""
        return fmean(self.values) if self.values else math.nan

    @property
    def std(self) -> float:
        """Sample standard deviation, NaN with fewer than two values."""
        return stdev(self.values) if len(self.values) > 1 else math.nan

    def as_dict(self) -> dict[str, Any]:
        """Give what JSON can hold; null where there is no number."""
        numbers = {"mean": self.mean, "std": self.std}
        ends = {"min": min(self.values), "max": max(self.values)} if self.values else {"min": None, "max": None}
        known = {name: None if math.isnan(value) else value for name, value in numbers.items()}
        return known | ends | {"values": list(self.values)}


@dataclass(frozen=True)
class FinishedRun:
    """What a run reached.

    Args:
        method: Its method.
        seed: Its seed.
        curve: Training step to accuracy on the held-out problems.
        reached: Level to the first validated step at which it was reached; a level never reached is left out.
        answers: Training step to what `judge_answers` says of that validation's dump.
        series: Metric to its values over the training steps, NaN where one is missing.
        record: The run's own `run.json`.
    """

    method: str
    seed: int
    curve: Mapping[int, float]
    reached: Mapping[float, int]
    answers: Mapping[int, Mapping[str, float]]
    series: Mapping[str, Sequence[float]]
    record: Mapping[str, Any]

    @property
    def before(self) -> float:
        """Accuracy before training."""
        return self.curve[min(self.curve)]

    @property
    def after(self) -> float:
        """Accuracy after the last step."""
        return self.curve[max(self.curve)]

    def window(self, metric: str, *, is_last: bool) -> float:
        """Give a metric's mean over the first or the last steps.

        Args:
            metric: Name.
            is_last: The last steps, not the first.

        Returns:
            The mean over what was recorded, NaN where nothing was.
        """
        values = self.series.get(metric, ())
        known = [value for value in (values[-WINDOW:] if is_last else values[:WINDOW]) if not math.isnan(value)]
        return fmean(known) if known else math.nan


@dataclass(frozen=True)
class Comparison:
    """All that a folder holds.

    Args:
        about: Its `comparison.json`.
        runs: The finished runs.
        missing: Those which should be there, to what they lack.
    """

    about: Mapping[str, Any]
    runs: tuple[FinishedRun, ...]
    missing: Mapping[str, str]

    @property
    def methods(self) -> list[str]:
        """Methods with a finished run, in the order of the comparison."""
        present = {run.method for run in self.runs}
        return [name for name in self.about["methods"] if name in present]

    def of(self, method: str) -> list[FinishedRun]:
        """Give the finished runs of a method.

        Args:
            method: Its name.

        Returns:
            Its runs, by seed.
        """
        return sorted((run for run in self.runs if run.method == method), key=lambda run: run.seed)


def read_comparison(out_dir: Path, levels: Sequence[float] = LEVELS) -> Comparison:
    """Read all runs of a comparison.

    Args:
        out_dir: What `compare.py` wrote.
        levels: Accuracies whose first step is wanted.

    Returns:
        The comparison.

    Raises:
        UserError: It is no such folder.
    """
    about = read_json(out_dir / COMPARISON_FILE)
    if not about:
        raise UserError.for_key("OUT_DIR", str(out_dir), f"has no {COMPARISON_FILE}", "Run recipe/miniature/compare.sh")
    planned = plan_runs(out_dir, about["methods"], about["seeds"], Sizes(**about["sizes"]))
    finished = [run for run in planned if run.is_finished]
    missing = {
        run.name: "not started" if run.last_step < 0 else f"ended at step {run.last_step} of {run.sizes.steps}"
        for run in planned
        if run not in finished
    }
    return Comparison(about, tuple(read_run(run, levels) for run in finished), missing)


def read_run(run: PlannedRun, levels: Sequence[float]) -> FinishedRun:
    """Read a finished run.

    Args:
        run: Which.
        levels: Accuracies whose first step is wanted.

    Returns:
        What it reached.
    """
    rows = read_metrics(run.folder)
    curve = accuracy_curve(rows)
    dumps = sorted((run.folder / VALIDATION_FOLDER).glob("*.jsonl"), key=lambda path: int(path.stem))
    return FinishedRun(
        method=run.method.name,
        seed=run.seed,
        curve=curve,
        reached={level: step for level in levels if (step := first_step(curve, level)) is not None},
        answers={int(path.stem): judge_answers(_lines(path)) for path in dumps},
        series=_series([row for row in rows if row["step"] > 0]),
        record=read_json(run.folder / RUN_FILE),
    )


def accuracy_curve(rows: Iterable[Mapping[str, Any]]) -> dict[int, float]:
    """Pick the validations.

    Args:
        rows: The metrics.

    Returns:
        Training step to accuracy.
    """
    return {
        int(row["step"]): float(value)
        for row in rows
        for key, value in row.items()
        if key.startswith(ACCURACY_PREFIX) and value is not None
    }


def first_step(curve: Mapping[int, float], level: float) -> int | None:
    """Find when a level was reached.

    Args:
        curve: Training step to accuracy.
        level: Accuracy.

    Returns:
        The first validated step at or above it, None if there is none.
    """
    return min((step for step, accuracy in curve.items() if accuracy >= level), default=None)


def judge_answers(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Judge dumped validation answers step by step, by the truth.

    Args:
        rows: The dump's rows.

    Returns:
        `right` share of right answers; `sound` share of answers that are right and have no wrong step; `right_steps`
        share of right ones among all steps before the answer; `steps` pieces per response; `repeated` share of
        responses with a piece that was there before; `empty` and `one_step` shares.
    """
    judged = [_judge(row) for row in rows]
    if not judged:
        return {}
    of_response = ("right", "sound", "steps", "repeated", "empty", "one_step")
    working = sum(one["working"] for one in judged)
    shares = {name: fmean(one[name] for one in judged) for name in of_response}
    return shares | {"right_steps": sum(one["working_right"] for one in judged) / working if working else math.nan}


def _judge(row: Mapping[str, Any]) -> dict[str, int]:
    """Count in one answer what `judge_answers` adds up."""
    verdicts = check_steps(row["prompt"][-1]["content"], row["response"])
    texts = [text for piece in row["response"].split(STEP_SEPARATOR) if (text := piece.strip())]
    return {
        "right": int(row["is_correct"]),
        "sound": int(row["is_correct"] and all(verdicts)),
        "steps": len(texts),
        "repeated": int(len(set(texts)) < len(texts)),
        "empty": int(not texts),
        "one_step": int(len(texts) == 1),
        "working": len(verdicts[:-1]),
        "working_right": sum(verdicts[:-1]),
    }


def gains(comparison: Comparison, method: str) -> Spread:
    """Compare a method with the baseline, seed by seed: runs of one seed see the same prompts in the same order.

    Args:
        comparison: The runs.
        method: Name.

    Returns:
        Accuracy after training, less the baseline's of the same seed.
    """
    baseline = {run.seed: run.after for run in comparison.of(BASELINE)}
    return Spread(tuple(run.after - baseline[run.seed] for run in comparison.of(method) if run.seed in baseline))


def spread(runs: Iterable[FinishedRun], number: Callable[[FinishedRun], float]) -> Spread:
    """Collect a number over runs.

    Args:
        runs: The runs.
        number: Gives a run's number, NaN where it has none.

    Returns:
        The numbers that are there.
    """
    return Spread(tuple(value for run in runs if not math.isnan(value := number(run))))


def describe(method: str) -> str:
    """Say what a method is.

    Args:
        method: Its name.

    Returns:
        One line.
    """
    return BY_NAME[method].says


def _series(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    names = sorted({name for row in rows for name in row} - {"step"})
    return {name: [math.nan if row.get(name) is None else float(row[name]) for row in rows] for name in names}


def _lines(path: Path) -> Iterable[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)
