# SPDX-License-Identifier: Apache-2.0
"""Writes table, numbers and plots of a comparison: `python3 -m recipe.miniature.report OUT_DIR [--out FOLDER]`.

    table.md     for people: accuracy, steps to a level, what the answers look like, monitors, times, origin
    table.json   the same numbers and every curve, for programs
    *.png        accuracy over steps, accuracy at the end, monitors over steps

Reads folders only, so it can be made anew at any time, also while runs are under way. Draws no conclusion.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from recipe.miniature.plots import write_plots
from recipe.miniature.runs import VALIDATION_FOLDER, write_json
from recipe.miniature.summary import (
    BASELINE,
    LEVELS,
    MONITORS,
    WINDOW,
    Comparison,
    FinishedRun,
    Spread,
    describe,
    gains,
    read_comparison,
    spread,
)
from verl.utils.errors import UserError

ANSWERS = {
    "right": "right answer",
    "sound": "right answer, no wrong step",
    "right_steps": "right steps of all",
    "steps": "pieces per response",
    "repeated": "a piece repeated",
    "one_step": "one piece",
    "empty": "empty",
}
_NONE = "-"


def markdown(comparison: Comparison, levels: Sequence[float] = LEVELS) -> str:
    """Write the table for people.

    Args:
        comparison: The runs.
        levels: Accuracies whose first step is told.

    Returns:
        Markdown.
    """
    sizes, about = comparison.about["sizes"], comparison.about
    parts = [
        f"# The miniature: methods compared, {about['date']}",
        f"{sizes['steps']} training steps, seeds {', '.join(map(str, about['seeds']))}, all from the same policy and "
        f"PRM; accuracy on the held-out problems, {sizes['val_samples']} responses each, sampled at temperature 1. "
        "Numbers are mean ± sample standard deviation over seeds, and [smallest, largest].",
        *_missing(comparison),
        "## Methods",
        _table(["method", "what it is"], [[name, describe(name)] for name in comparison.methods]),
        "## Accuracy",
        _accuracy(comparison),
        "## First validated step at a level",
        f"Validated every {sizes['test_freq']} steps. Mean [smallest, largest] over the seeds that reached it, and how "
        "many did where not all.",
        _levels(comparison, levels),
        "## Held-out answers by the truth",
        "Before training and after the last step; every step judged by the checker that made the data, not by the PRM.",
        _answers(comparison),
        "## Monitors",
        f"Mean over the first {WINDOW} training steps and over the last {WINDOW}, in the score space of the method.",
        _monitors(comparison),
        "## Time",
        "Of a training step, without validation; runs that shared the machine slowed each other.",
        _times(comparison),
        "## Origin",
        _origin(comparison),
    ]
    return "\n\n".join(parts) + "\n"


def numbers(comparison: Comparison, levels: Sequence[float] = LEVELS) -> dict[str, Any]:
    """Collect every number for programs.

    Args:
        comparison: The runs.
        levels: Accuracies whose first step is told.

    Returns:
        What JSON can hold.
    """
    methods = {}
    for name in comparison.methods:
        runs = comparison.of(name)
        methods[name] = {
            "what": describe(name),
            "accuracy_before": spread(runs, lambda run: run.before).as_dict(),
            "accuracy_after": spread(runs, lambda run: run.after).as_dict(),
            "accuracy_over_training": spread(runs, _over_training).as_dict(),
            f"accuracy_after_less_{BASELINE}": gains(comparison, name).as_dict(),
            "first_step_at": {str(level): [run.reached.get(level) for run in runs] for level in levels},
            "monitors": {metric: _ends(runs, metric) for metric in MONITORS if _has(runs, metric)},
            "runs": [_run_numbers(run) for run in runs],
        }
    return {**comparison.about, "missing": dict(comparison.missing), "methods": methods}


def write_report(out_dir: Path, folder: Path | None = None, levels: Sequence[float] = LEVELS) -> list[Path]:
    """Write everything.

    Args:
        out_dir: What `compare.py` wrote.
        folder: Where the report goes; None for `OUT_DIR/results/DATE`.
        levels: Accuracies whose first step is told.

    Returns:
        The files.

    Raises:
        UserError: `out_dir` holds no comparison, or no finished run.
    """
    comparison = read_comparison(out_dir, levels)
    if not comparison.runs:
        raise UserError.for_key("OUT_DIR", str(out_dir), "has no finished run", "Run recipe/miniature/compare.sh")
    folder = folder or out_dir / "results" / comparison.about["date"]
    folder.mkdir(parents=True, exist_ok=True)
    table, data = folder / "table.md", folder / "table.json"
    table.write_text(markdown(comparison, levels), encoding="utf-8")
    write_json(data, numbers(comparison, levels))
    return [table, data, *write_plots(comparison, folder)]


def _missing(comparison: Comparison) -> list[str]:
    if not comparison.missing:
        return []
    rows = "\n".join(f"- {name}: {why}" for name, why in comparison.missing.items())
    return [f"**Runs that are missing here:**\n\n{rows}"]


def _accuracy(comparison: Comparison) -> str:
    head = ["method", "seeds", "before", "after", "after, each seed", f"after, less {BASELINE}'s", "over training"]
    rows = []
    for name in comparison.methods:
        runs = comparison.of(name)
        after = spread(runs, lambda run: run.after)
        rows.append(
            [
                name,
                str(len(runs)),
                _spread(spread(runs, lambda run: run.before)),
                _spread(after, ends=True),
                ", ".join(f"{value:.3f}" for value in after.values),
                _NONE if name == BASELINE else _spread(gains(comparison, name), sign="+"),
                _spread(spread(runs, _over_training)),
            ]
        )
    note = (
        f"\n\n`less {BASELINE}'s` is taken seed by seed; `over training` is the mean of all validations after the "
        "first, a number for the speed of learning that hangs on no level."
    )
    return _table(head, rows) + note


def _levels(comparison: Comparison, levels: Sequence[float]) -> str:
    rows = []
    for name in comparison.methods:
        runs = comparison.of(name)
        rows.append([name, *(_steps_to([run.reached.get(level) for run in runs]) for level in levels)])
    return _table(["method", *(f"{level:g}" for level in levels)], rows)


def _steps_to(steps: Sequence[int | None]) -> str:
    """Say when the seeds reached a level."""
    reached = [step for step in steps if step is not None]
    if not reached:
        return f"never (0 of {len(steps)})"
    ends = "" if min(reached) == max(reached) else f" [{min(reached)}, {max(reached)}]"
    count = "" if len(reached) == len(steps) else f" ({len(reached)} of {len(steps)})"
    return f"{sum(reached) / len(reached):.0f}{ends}{count}"


def _answers(comparison: Comparison) -> str:
    rows = []
    for name in comparison.methods:
        runs = [run for run in comparison.of(name) if run.answers]
        cells = []
        for key in ANSWERS:
            first = spread(runs, lambda run, key=key: run.answers[min(run.answers)].get(key, math.nan))
            last = spread(runs, lambda run, key=key: run.answers[max(run.answers)].get(key, math.nan))
            cells.append(_change(first, last))
        rows.append([name, *cells])
    return _table(["method", *ANSWERS.values()], rows)


def _monitors(comparison: Comparison) -> str:
    shown = [metric for metric in MONITORS if _has(comparison.runs, metric)]
    rows = []
    for name in comparison.methods:
        runs = comparison.of(name)
        rows.append([name, *(_change(*_first_and_last(runs, metric)) for metric in shown)])
    return _table(["method", *(MONITORS[metric] for metric in shown)], rows)


def _times(comparison: Comparison) -> str:
    rows = []
    for name in comparison.methods:
        runs = comparison.of(name)
        step, share = _whole(runs, "timing_s/step"), _whole(runs, "reward/exposed/share")
        rows.append([name, _spread(step, digits=2), _NONE if not share.values else f"{share.mean:.2%}"])
    return _table(["method", "seconds per step", "share of a step spent waiting for scores"], rows)


def _origin(comparison: Comparison) -> str:
    about = comparison.about
    commits = sorted({str(run.record.get("commit", "unknown")) for run in comparison.runs})
    machine = "; ".join(f"{name} {value}" for name, value in about["machine"].items())
    assets = ", ".join(f"{name} {digest}" for name, digest in about["assets"].items())
    lines = [
        f"- date: {about['date']}",
        f"- commit: {', '.join(commits)}",
        f"- machine: {machine}",
        f"- SHA-256 of what all started from, first digits: {assets}",
        *(f"- command: `{command}`" for command in about["commands"]),
    ]
    return "\n".join(lines)


def _run_numbers(run: FinishedRun) -> dict[str, Any]:
    return {
        "seed": run.seed,
        "commit": run.record.get("commit"),
        # without the folder of the dumps, which is a name of this machine
        "arguments": [each for each in run.record.get("arguments", []) if VALIDATION_FOLDER not in each],
        "accuracy": {str(step): value for step, value in run.curve.items()},
        "answers": {str(step): _without_nan(judged) for step, judged in run.answers.items()},
    }


def _without_nan(values: Any) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else round(value, 6) for name, value in values.items()}


def _over_training(run: FinishedRun) -> float:
    later = [accuracy for step, accuracy in run.curve.items() if step > min(run.curve)]
    return sum(later) / len(later) if later else math.nan


def _whole(runs: Sequence[FinishedRun], metric: str) -> Spread:
    """Give a metric's mean over each run, without the first step, which pays for what is done once."""

    def mean(run: FinishedRun) -> float:
        known = [value for value in run.series.get(metric, ())[1:] if not math.isnan(value)]
        return sum(known) / len(known) if known else math.nan

    return spread(runs, mean)


def _has(runs: Sequence[FinishedRun], metric: str) -> bool:
    return any(metric in run.series for run in runs)


def _first_and_last(runs: Sequence[FinishedRun], metric: str) -> tuple[Spread, Spread]:
    first: Callable[[FinishedRun], float] = lambda run: run.window(metric, is_last=False)  # noqa: E731
    return spread(runs, first), spread(runs, lambda run: run.window(metric, is_last=True))


def _ends(runs: Sequence[FinishedRun], metric: str) -> dict[str, Any]:
    first, last = _first_and_last(runs, metric)
    return {"first": first.as_dict(), "last": last.as_dict()}


def _change(first: Spread, last: Spread) -> str:
    if not first.values and not last.values:
        return _NONE
    return " → ".join(_number(each.mean) for each in (first, last))


def _number(value: float) -> str:
    if math.isnan(value):
        return _NONE
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"


def _spread(numbers_of_seeds: Spread, *, ends: bool = False, digits: int = 3, sign: str = "") -> str:
    if not numbers_of_seeds.values:
        return _NONE
    text = f"{numbers_of_seeds.mean:{sign}.{digits}f}"
    if not math.isnan(numbers_of_seeds.std):
        text += f" ± {numbers_of_seeds.std:.{digits}f}"
    if ends and len(numbers_of_seeds.values) > 1:
        text += f" [{min(numbers_of_seeds.values):.{digits}f}, {max(numbers_of_seeds.values):.{digits}f}]"
    return text


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> int:
    """Run the program.

    Returns:
        Exit code: 0, or 2 when the user has to mend something.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out_dir", type=Path, help="folder of the comparison")
    parser.add_argument("--out", type=Path, help="folder of the report (default: OUT_DIR/results/DATE)")
    parser.add_argument("--levels", type=float, nargs="+", default=list(LEVELS), help="accuracies whose step is told")
    arguments = parser.parse_args()
    try:
        files = write_report(arguments.out_dir, arguments.out, arguments.levels)
    except UserError as error:
        Console(stderr=True).print(str(error), markup=False, highlight=False, soft_wrap=True)
        return 2
    for path in files:
        Console().print(f"written: {path}", markup=False, highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
