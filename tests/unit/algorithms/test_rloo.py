# SPDX-License-Identifier: Apache-2.0
"""Leave-one-out against hand-worked numbers and a loop."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.reward_batches import assert_rows_may_stand_anywhere, one_reward_each, reward_batches
from tests.helpers.step_batches import assert_rows
from verl.algorithms.grpo import grpo_outcome
from verl.algorithms.rloo import rloo


def advantage_by_loop(batch, row):
    others = [batch.total(other) for other in batch.group_of(row) if other != row]
    return batch.total(row) - sum(others) / len(others) if others else 0.0


def test_hand_worked_group_of_three():
    # the others' means are (0 + 4) / 2, (1 + 4) / 2, (1 + 0) / 2
    advantages, returns = rloo(one_reward_each([1.0, 0.0, 4.0], [1, 2, 3]).inputs())
    assert_rows(advantages, [[-1, 0, 0], [-2.5, -2.5, 0], [3.5, 3.5, 3.5]], 1e-6)
    assert_rows(returns, [[1, 0, 0], [0, 0, 0], [4, 4, 4]], 1e-6)


def test_it_is_dr_grpo_times_g_over_g_minus_one():
    inputs = one_reward_each([1.0, 0.0, 4.0, -2.0], [1, 2, 3, 1]).inputs(norm_adv_by_std=False)
    torch.testing.assert_close(rloo(inputs)[0], grpo_outcome(inputs)[0] * 4 / 3, atol=1e-5, rtol=0)


def test_equal_rewards_and_a_group_of_one_give_exactly_zero():
    equal = one_reward_each([0.1] * 7 + [0.3], [2] * 8, [0] * 7 + [1])
    assert rloo(equal.inputs())[0].abs().max() == 0


@given(reward_batches())
def test_equals_the_loop(batch):
    assert_rows(rloo(batch.inputs())[0], batch.table(lambda row, _: advantage_by_loop(batch, row)))


@given(reward_batches(), st.randoms(use_true_random=False))
def test_permuted_rows_give_permuted_advantages(batch, random):
    assert_rows_may_stand_anywhere(rloo, batch, random)
