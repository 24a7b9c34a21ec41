# SPDX-License-Identifier: Apache-2.0
"""The exposed-time benchmark: which steps count, what is made of them, and a command that the trainer accepts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.exposed_reward import command, parse, read_metrics, show, summarise
from benchmarks.record import describe_run
from tests.helpers.configs import load


def row(step: int, waited_s: float, step_s: float) -> dict[str, float]:
    return {
        "step": step,
        "reward/exposed/share": waited_s / step_s,
        "timing_s/wait_for_scores": waited_s,
        "timing_s/gen": 1.0,
        "timing_s/step": step_s,
    }


def test_validation_rows_and_first_steps_do_not_count(tmp_path: Path) -> None:
    rows = [{"step": 0, "val/acc/mean": 0.5}, row(1, 9.0, 10.0), row(2, 1.0, 10.0), row(3, 2.0, 10.0)]
    path = tmp_path / "metrics.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    assert [each["step"] for each in read_metrics(path, skip=1)] == [2, 3]
    with pytest.raises(ValueError, match="no training step behind the first 3"):
        read_metrics(path, skip=3)


def test_medians_and_the_share_of_all_time() -> None:
    summary = summarise([row(1, 0.0, 1.0), row(2, 0.0, 1.0), row(3, 2.0, 6.0)])
    assert summary["exposed share"] == 0.0 and summary["step s"] == 1.0 and summary["steps"] == 3
    assert summary["exposed share of all time"] == 0.25
    shown = show(describe_run("exposed_reward", {}) | {"results": {"beside the rollout": summary}})
    assert "25.00%" in shown and "beside the rollout" in shown


@pytest.mark.parametrize("overlaps", [True, False])
def test_the_trainer_accepts_the_arguments(overlaps: bool) -> None:
    call = command("assets", 15, overlaps, [])
    config = load(*call[5:]).config
    assert config.reward_model.overlap_rollout is overlaps
    assert (config.trainer.total_training_steps, config.trainer.test_freq, config.trainer.save_freq) == (15, 0, 0)
    assert config.reward_model.score_cache_entries == 0 and not config.trainer.val_before_train


def test_arguments_of_the_trainer_are_passed_on() -> None:
    parsed = parse(["--assets", "a", "--steps", "4", "data.train_batch_size=8"])
    assert parsed.further == ["data.train_batch_size=8"] and Path(parsed.assets).is_absolute()
    assert command(parsed.assets, 4, True, parsed.further)[-1] == "data.train_batch_size=8"
