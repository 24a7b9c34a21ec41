# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from verl.config import (
    ActorConfig,
    ActorRolloutRefConfig,
    PPOTrainerConfig,
    RewardModelConfig,
    RolloutConfig,
    TrainerConfig,
    ValKwargs,
)
from verl.trainer.ppo.summary import closing_text, display_columns, headline_accuracy, read_metrics


def config(val: ValKwargs | None = None, prm: bool = False, kl: bool = False, **trainer: Any) -> PPOTrainerConfig:
    rollout = RolloutConfig(val_kwargs=val or ValKwargs())
    policy = ActorRolloutRefConfig(rollout=rollout, actor=ActorConfig(use_kl_loss=kl))
    reward = RewardModelConfig(enable=prm)
    return PPOTrainerConfig(actor_rollout_ref=policy, reward_model=reward, trainer=TrainerConfig(**trainer))


def write(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_columns_without_a_source_are_left_out() -> None:
    def titles(settings: PPOTrainerConfig) -> set[str]:
        return {column.title for column in display_columns(settings)}

    assert titles(config(prm=True, kl=True)) - titles(config()) == {"PRM", "KL"}
    assert titles(config(prm=True)) - titles(config()) == {"PRM"}


@pytest.mark.parametrize(
    ("val", "metric"),
    [
        (ValKwargs(n=8, do_sample=True), "val/acc/mean@8"),
        (ValKwargs(n=8, do_sample=False), "val/acc/mean@1"),
    ],
)
def test_the_accuracy_shown_is_the_one_validation_writes(val: ValKwargs, metric: str) -> None:
    assert metric in {column.metric for column in display_columns(config(val))}


def test_headline_is_over_all_prompts() -> None:
    metrics = {"val/gsm8k/acc/mean@4": 0.9, "val/acc/maj@4": 0.8, "val/acc/mean@4": 0.5}
    assert headline_accuracy(metrics) == ("val/acc/mean@4", 0.5)
    assert headline_accuracy({"val/gsm8k/acc/mean@4": 0.9}) is None


def test_only_the_last_run_of_a_file_is_read(tmp_path: Path) -> None:
    steps = [0, 1, 2, 0, 1]
    rows = read_metrics(write(tmp_path, *({"step": step, "n": n} for n, step in enumerate(steps))))
    assert [row["n"] for row in rows] == [3, 4]
    assert read_metrics(tmp_path / "none.jsonl") == []


def test_a_run_that_goes_on_is_one_run(tmp_path: Path) -> None:
    # validated at step 2, stopped, resumed at 2 and validated again there
    path = write(tmp_path, *({"step": step} for step in [0, 1, 2, 2, 3]))
    assert len(read_metrics(path)) == 5


def test_closing_text_says_before_and_after(tmp_path: Path) -> None:
    write(
        tmp_path,
        {"step": 0, "val/acc/mean@2": 0.25},
        {"step": 1, "timing_s/step": 2.0, "timing_s/gen": 1.5, "timing_s/wait_for_scores": 0.5},
        {"step": 2, "timing_s/step": 4.0, "timing_s/gen": 1.5, "val/acc/mean@2": 0.5},
    )
    text = closing_text(config(output_dir=str(tmp_path), rollout_data_dir="dumps", export_hf=False))
    assert "held-out accuracy (mean@2): 0.250 before (step 0), 0.500 after (step 2), +25.0 points" in text
    assert "mean step time 3.00 s over 2 steps" in text
    (gen,) = [line for line in text.splitlines() if line.split()[:1] == ["gen"]]
    assert gen.split() == ["gen", "1.500", "s", "50.0", "%"]
    assert "of which waiting for scores 0.250 s" in text and "in flight" not in text
    places = dict(line.split() for line in text.split("results\n")[1].splitlines())
    assert places == {
        "metrics": str(tmp_path / "metrics.jsonl"),
        "rollouts": "dumps",
        "checkpoints": f"{tmp_path}/checkpoints",
    }


def test_closing_text_says_what_a_rollout_ahead_is_waited_for(tmp_path: Path) -> None:
    times = {"timing_s/step": 2.0, "timing_s/wait_for_in_flight": 0.5}
    write(tmp_path, {"step": 1, "staleness/max": 0.0, **times}, {"step": 2, "staleness/max": 1.0, **times})
    assert "of which waiting for responses in flight 0.500 s" in closing_text(config(output_dir=str(tmp_path)))


def test_closing_text_names_the_exported_policy(tmp_path: Path) -> None:
    assert str(tmp_path / "hf") in closing_text(config(output_dir=str(tmp_path), export_hf=True))


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "no validation in this run"),
        ([{"step": 1, "loss": 1.0}], "no validation in this run"),
        ([{"step": 4, "val/acc/mean@1": 0.5}], "held-out accuracy (mean@1): 0.500 at step 4"),
    ],
)
def test_closing_text_of_short_runs(tmp_path: Path, rows: list[dict[str, Any]], said: str) -> None:
    write(tmp_path, *rows)
    text = closing_text(config(output_dir=str(tmp_path)))
    assert said in text
    assert "step time" not in text
