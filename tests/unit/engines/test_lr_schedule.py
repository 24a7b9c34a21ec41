# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from transformers import get_scheduler

from verl.engines.base import OptimizerSpec
from verl.engines.lr_schedule import lr_at
from verl.utils.errors import UserError


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_without_warm_up_it_is_the_schedule_of_transformers(schedule: str) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    reference = get_scheduler(schedule, optimizer, num_warmup_steps=0, num_training_steps=7)
    spec = OptimizerSpec(lr=0.5, schedule=schedule, total_steps=7)
    for step in range(9):
        if step < 8:
            assert lr_at(step, spec) == pytest.approx(reference.get_last_lr()[0])
        optimizer.step()
        reference.step()


def test_warm_up_starts_above_zero_and_meets_the_peak() -> None:
    spec = OptimizerSpec(lr=1.0, warmup_steps=4, schedule="cosine", total_steps=8, min_lr_ratio=0.1)
    assert [lr_at(step, spec) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert lr_at(6, spec) == pytest.approx(0.55)
    assert lr_at(8, spec) == lr_at(100, spec) == pytest.approx(0.1)


def test_constant_needs_no_length() -> None:
    assert lr_at(1000, OptimizerSpec(lr=2.0)) == 2.0


def test_wrong_schedules_name_the_key() -> None:
    with pytest.raises(UserError, match="optim.lr_scheduler_type='exponential'"):
        OptimizerSpec(schedule="exponential")
    with pytest.raises(UserError, match="optim.lr_warmup_steps"):
        lr_at(3, OptimizerSpec(schedule="linear"))
