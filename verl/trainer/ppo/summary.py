# SPDX-License-Identifier: Apache-2.0
"""What the console shows during a run and says at its end: before and after, where time went, where files lie."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from verl.config import PPOTrainerConfig
from verl.utils.console import DisplayColumn

_COLUMNS = (
    DisplayColumn("accuracy", "reward/accuracy/mean"),
    DisplayColumn("PRM", "prm/score/mean"),
    DisplayColumn("reward", "reward/score/mean"),
    DisplayColumn("length", "response/length/mean", ".0f"),
    DisplayColumn("entropy", "policy/entropy/mean"),
    DisplayColumn("KL", "actor/kl_loss", ".4f"),
    DisplayColumn("grad", "actor/grad_norm", ".2f"),
    DisplayColumn("s/step", "timing_s/step", ".2f"),
    DisplayColumn("tok/s", "perf/tokens_per_s", ".0f"),
)

_WAITS = {"scores": "timing_s/wait_for_scores", "responses in flight": "timing_s/wait_for_in_flight"}
"""The second is a part of `update_weights`, and is there where the rollout runs ahead."""

STAGES = ("gen", "old_log_prob", "ref", "reward", "adv", "update_actor", "update_weights")


def display_columns(config: PPOTrainerConfig) -> list[DisplayColumn]:
    """What the live table shows.

    Args:
        config: Reads which validation accuracy there is, and whether there is a PRM or a KL term.

    Returns:
        Columns from left to right.
    """
    val = config.actor_rollout_ref.rollout.val_kwargs
    columns = [
        DisplayColumn("held-out", f"val/acc/mean@{val.n if val.do_sample else 1}", is_news=True),
        *(column for column in _COLUMNS if config.reward_model.enable or column.title != "PRM"),
    ]
    return [column for column in columns if config.actor_rollout_ref.actor.use_kl_loss or column.title != "KL"]


def closing_text(config: PPOTrainerConfig) -> str:
    """The last lines of a run, read back from its metrics file.

    Args:
        config: Names the run's folders.

    Returns:
        Accuracy before and after, step time by stage, and the folders.
    """
    run_dir = Path(config.trainer.run_dir).expanduser()
    rows = read_metrics(run_dir / "metrics.jsonl")
    lines = ["", *_accuracy_lines(rows), *_time_lines(rows), "", "results"]
    places: dict[str, Any] = {
        "metrics": run_dir / "metrics.jsonl",
        "rollouts": config.trainer.rollout_data_dir,
        "checkpoints": config.trainer.checkpoint_dir,
        "policy, HF format": run_dir / "hf" if config.trainer.export_hf else None,
    }
    lines += [f"  {name:<18} {place}" for name, place in places.items() if place is not None]
    return "\n".join(lines)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read a metrics file, the last run in it: from the last row whose step is smaller than the one before.

    Args:
        path: `metrics.jsonl`.

    Returns:
        One row per training step, empty when there is no file.
    """
    if not path.is_file():
        return []
    rows: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if rows and row["step"] < rows[-1]["step"]:
            rows = []
        rows.append(row)
    return rows


def headline_accuracy(metrics: Mapping[str, Any]) -> tuple[str, float] | None:
    """The one validation number to show: mean@n over all prompts.

    Args:
        metrics: Of one step.

    Returns:
        Metric name and value; None when the step had no validation.
    """
    names = [name for name in metrics if name.startswith("val/acc/mean@")]
    return (names[0], float(metrics[names[0]])) if names else None


def _accuracy_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    found = [(row["step"], headline_accuracy(row)) for row in rows]
    known = [(step, value) for step, value in found if value is not None]
    if not known:
        return ["held-out accuracy: no validation in this run"]
    (first_step, (name, first)), (last_step, (_, last)) = known[0], known[-1]
    kind = name.removeprefix("val/acc/")
    if first_step == last_step:
        return [f"held-out accuracy ({kind}): {first:.3f} at step {first_step}"]
    return [
        f"held-out accuracy ({kind}): {first:.3f} before (step {first_step}), {last:.3f} after (step {last_step}), "
        f"{100 * (last - first):+.1f} points"
    ]


def _time_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    timed = [row for row in rows if row.get("timing_s/step")]
    if not timed:
        return []
    mean = {stage: sum(row.get(f"timing_s/{stage}") or 0.0 for row in timed) / len(timed) for stage in STAGES}
    step_s = sum(row["timing_s/step"] for row in timed) / len(timed)
    waits = {what: sum(row.get(key) or 0.0 for row in timed) / len(timed) for what, key in _WAITS.items()}
    lines = ["", f"mean step time {step_s:.2f} s over {len(timed)} steps"]
    lines += [f"  {stage:<16} {seconds:7.3f} s  {100 * seconds / step_s:5.1f} %" for stage, seconds in mean.items()]
    ahead = any(row.get("staleness/max") for row in timed)
    shown = waits if ahead else {"scores": waits["scores"]}
    return lines + [f"  of which waiting for {what} {seconds:.3f} s" for what, seconds in shown.items()]
