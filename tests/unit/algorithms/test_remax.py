# SPDX-License-Identifier: Apache-2.0
"""ReMax against hand-worked numbers and a loop."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.reward_batches import RewardBatch, assert_rows_may_stand_anywhere, reward_batches
from tests.helpers.step_batches import assert_rows
from verl.algorithms.remax import remax


def test_hand_worked_and_the_group_does_not_matter():
    batch = RewardBatch([[0.5, 1.0], [-1.0]], [0, 0], [0.25, 0.25])
    advantages, returns = remax(batch.inputs())
    assert_rows(advantages, [[1.25, 1.25], [-1.25, 0]], 1e-6)
    assert_rows(returns, [[1.5, 1.5], [-1, 0]], 1e-6)
    alone = dataclasses.replace(batch, groups=[0, 1])
    assert remax(alone.inputs())[0].tolist() == advantages.tolist()


def test_as_good_as_greedy_is_no_news():
    assert remax(RewardBatch([[0.0, 1.0]], [0], [1.0]).inputs())[0].abs().max() == 0


def test_the_baseline_is_required():
    inputs = dataclasses.replace(RewardBatch([[1.0]], [0], [0.0]).inputs(), reward_baselines=None)
    with pytest.raises(ValueError, match="reward_baselines"):
        remax(inputs)


@given(reward_batches())
def test_equals_the_loop(batch):
    assert_rows(remax(batch.inputs())[0], batch.table(lambda row, _: batch.total(row) - batch.greedy[row]))


@given(reward_batches(), st.randoms(use_true_random=False))
def test_permuted_rows_give_permuted_advantages(batch, random):
    assert_rows_may_stand_anywhere(remax, batch, random)
