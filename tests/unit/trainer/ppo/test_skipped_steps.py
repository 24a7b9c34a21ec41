# SPDX-License-Identifier: Apache-2.0
"""When a run counts as stuck, and what it says then."""

from __future__ import annotations

import pytest

from verl.trainer.ppo.skipped_steps import SkippedSteps
from verl.utils.errors import UserError


def step(made: float, skipped: float) -> dict[str, float]:
    return {"actor/optimizer_steps": made, "actor/skipped_steps": skipped}


def test_a_run_stops_after_so_many_steps_in_a_row_without_any_optimizer_step() -> None:
    watch = SkippedSteps(max_in_a_row=2)
    assert watch.count(step(4, 4)) == {"actor/skipped_steps/sum": 4.0, "actor/skipped_steps/in_a_row": 1.0}
    watch.raise_if_stuck()
    assert watch.count(step(4, 4)) == {"actor/skipped_steps/sum": 8.0, "actor/skipped_steps/in_a_row": 2.0}
    with pytest.raises(UserError, match=r"trainer.max_skipped_steps=2: stopped.* last 2 training steps.*checkpoint"):
        watch.raise_if_stuck()


def test_one_optimizer_step_that_was_made_breaks_the_row() -> None:
    watch = SkippedSteps(max_in_a_row=2)
    watch.count(step(4, 4))
    assert watch.count(step(4, 3))["actor/skipped_steps/in_a_row"] == 0.0
    assert watch.count(step(4, 4))["actor/skipped_steps/sum"] == 11.0
    watch.raise_if_stuck()


def test_a_step_with_nothing_to_train_on_neither_breaks_the_row_nor_counts() -> None:
    watch = SkippedSteps(max_in_a_row=2)
    watch.count(step(1, 1))
    assert watch.count({"actor/optimizer_steps": 0.0})["actor/skipped_steps/in_a_row"] == 1.0
    watch.raise_if_stuck()
    watch.count(step(1, 1))
    with pytest.raises(UserError):
        watch.raise_if_stuck()


def test_zero_never_stops() -> None:
    watch = SkippedSteps(max_in_a_row=0)
    for _ in range(50):
        watch.count(step(2, 2))
        watch.raise_if_stuck()


def test_another_trainer_has_names_and_advice_of_its_own() -> None:
    watch = SkippedSteps(1, "train", "Look elsewhere")
    counted = watch.count({"train/optimizer_steps": 1.0, "train/skipped_steps": 1.0, "actor/optimizer_steps": 1.0})
    assert counted == {"train/skipped_steps/sum": 1.0, "train/skipped_steps/in_a_row": 1.0}
    assert watch.is_stuck
    with pytest.raises(UserError, match="Look elsewhere") as caught:
        watch.raise_if_stuck()
    assert "rollout" not in str(caught.value)
