# SPDX-License-Identifier: Apache-2.0
"""REINFORCE++ and its group baseline against hand-worked numbers and loops over tokens."""

from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.reward_batches import RewardBatch, assert_rows_may_stand_anywhere, one_reward_each, reward_batches
from tests.helpers.step_batches import assert_rows
from verl.algorithms.reinforce_plus_plus import reinforce_plus_plus, reinforce_plus_plus_baseline

BOTH = [reinforce_plus_plus, reinforce_plus_plus_baseline]


def to_come(batch: RewardBatch, row: int, token: int) -> float:
    return sum(batch.rewards[row][token:])


def from_the_group(batch: RewardBatch, row: int, token: int) -> float:
    group = [batch.total(other) for other in batch.group_of(row)]
    return batch.total(row) - math.fsum(group) / len(group)


def whitened_by_loop(batch: RewardBatch, value) -> list[list[float]]:
    tokens = [value(batch, row, token) for row, rewards in enumerate(batch.rewards) for token in range(len(rewards))]
    mean = math.fsum(tokens) / max(1, len(tokens))
    std = statistics.stdev(tokens) if len(tokens) > 1 else 0.0
    if std < 1e-6:
        return batch.table(lambda row, token: 0.0)
    return batch.table(lambda row, token: (value(batch, row, token) - mean) / (std + 1e-6))


def test_hand_worked_rewards_to_come():
    # to come: 3, 2 | -1; mean 4/3, deviation sqrt((25 + 4 + 49) / 9 / 2) = sqrt(13/3)
    advantages, returns = reinforce_plus_plus(RewardBatch([[1.0, 2.0], [-1.0]], [0, 1], [0.0, 0.0]).inputs())
    std = math.sqrt(13 / 3)
    assert_rows(returns, [[3, 2], [-1, 0]], 1e-6)
    assert_rows(advantages, [[5 / 3 / std, 2 / 3 / std], [-7 / 3 / std, 0]], 1e-5)


def test_hand_worked_group_baseline():
    # d: 1, -1 | 0, 0 (an even group); on tokens 1, -1, -1, 0, 0: mean -0.2, deviation sqrt(2.8 / 4)
    batch = one_reward_each([1.0, -1.0, 5.0, 5.0], [1, 2, 1, 1], [0, 0, 1, 1])
    advantages, returns = reinforce_plus_plus_baseline(batch.inputs())
    std = math.sqrt(0.7)
    assert_rows(returns, [[1, 0], [-1, -1], [0, 0], [0, 0]], 1e-6)
    assert_rows(advantages, [[1.2 / std, 0], [-0.8 / std] * 2, [0.2 / std, 0], [0.2 / std, 0]], 1e-5)


@pytest.mark.parametrize("estimator", BOTH)
def test_equal_rewards_give_exactly_zero(estimator):
    assert estimator(one_reward_each([0.1] * 7, [1] * 7).inputs())[0].abs().max() == 0


@given(reward_batches())
def test_both_equal_their_loops_over_tokens(batch):
    assert_rows(reinforce_plus_plus(batch.inputs())[0], whitened_by_loop(batch, to_come))
    assert_rows(reinforce_plus_plus_baseline(batch.inputs())[0], whitened_by_loop(batch, from_the_group))


@pytest.mark.parametrize("estimator", BOTH)
@given(batch=reward_batches(), random=st.randoms(use_true_random=False))
def test_permuted_rows_give_permuted_advantages(estimator, batch, random):
    assert_rows_may_stand_anywhere(estimator, batch, random)
