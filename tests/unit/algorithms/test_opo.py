# SPDX-License-Identifier: Apache-2.0
"""OPO's baseline against hand-worked numbers and a loop."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.reward_batches import RewardBatch, assert_rows_may_stand_anywhere, one_reward_each, reward_batches
from tests.helpers.step_batches import assert_rows
from verl.algorithms.opo import opo


def advantage_by_loop(batch: RewardBatch, row: int) -> float:
    tokens = sum(len(batch.rewards[other]) for other in batch.group_of(row))
    weighted = sum(len(batch.rewards[other]) * batch.total(other) for other in batch.group_of(row))
    return batch.total(row) - weighted / tokens


def test_hand_worked_pair():
    # (1 * 1 + 3 * -1) / 4 = -0.5
    advantages, returns = opo(one_reward_each([1.0, -1.0], [1, 3]).inputs())
    assert_rows(advantages, [[1.5, 0, 0], [-0.5, -0.5, -0.5]], 1e-6)
    assert_rows(returns, [[1, 0, 0], [-1, -1, -1]], 1e-6)


@given(reward_batches())
def test_equals_the_loop(batch):
    assert_rows(opo(batch.inputs())[0], batch.table(lambda row, _: advantage_by_loop(batch, row)))


@given(reward_batches())
def test_advantages_of_a_group_sum_to_zero_over_its_tokens(batch):
    found = opo(batch.inputs())[0].sum(-1)
    for group in set(batch.groups):
        rows = [row for row, number in enumerate(batch.groups) if number == group]
        assert sum(float(found[row]) for row in rows) == pytest.approx(0.0, abs=1e-4)


def test_equal_rewards_and_a_group_of_one_give_exactly_zero():
    equal = one_reward_each([0.1] * 7 + [0.3], [1, 2, 3, 4, 5, 6, 7, 3], [0] * 7 + [1])
    assert opo(equal.inputs())[0].abs().max() == 0


@given(reward_batches(), st.randoms(use_true_random=False))
def test_permuted_rows_give_permuted_advantages(batch, random):
    assert_rows_may_stand_anywhere(opo, batch, random)
