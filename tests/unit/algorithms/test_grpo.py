# SPDX-License-Identifier: Apache-2.0
"""GRPO with outcome supervision against hand-worked numbers and a loop over tokens."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from verl.algorithms.grpo import grpo_outcome
from verl.algorithms.inputs import AdvantageInputs


def inputs_of(rewards, mask, groups, **settings) -> AdvantageInputs:
    return AdvantageInputs(
        torch.tensor(rewards, dtype=torch.float32), torch.tensor(mask), torch.tensor(groups), **settings
    )


def grpo_by_loop(inputs: AdvantageInputs) -> list[list[float]]:
    """One token at a time, Python floats only."""
    rewards, mask = inputs.token_level_rewards.tolist(), inputs.response_mask.tolist()
    groups = inputs.group_index.tolist()
    totals = [sum(r for r, m in zip(row, ms, strict=True) if m) for row, ms in zip(rewards, mask, strict=True)]
    table = []
    for number, row in enumerate(mask):
        members = [total for total, group in zip(totals, groups, strict=True) if group == groups[number]]
        std = statistics.stdev(members) if len(members) > 1 else 0.0
        value = totals[number] - math.fsum(members) / len(members)
        if inputs.norm_adv_by_std:
            value = value / (std + inputs.epsilon) if std >= inputs.epsilon else 0.0
        table.append([value if m else 0.0 for m in row])
    return table


def test_hand_worked_group_of_three():
    # Totals 1, 0, -1: mean 0, deviation 1 (n - 1). The second group is one right, one wrong: mean 0, deviation sqrt 2.
    rewards = [[0.25, 0.75, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, -1.0], [1.0, 0.0, 0.0], [0.0, -1.0, 0.0]]
    mask = [[1, 1, 0], [1, 1, 1], [1, 1, 1], [1, 0, 0], [1, 1, 0]]
    advantages, returns = grpo_outcome(inputs_of(rewards, mask, [7, 7, 7, 3, 3]))
    half = 1 / math.sqrt(2)
    expected = [[1, 1, 0], [0, 0, 0], [-1, -1, -1], [half, 0, 0], [-half, -half, 0]]
    assert advantages.tolist() == [pytest.approx(row, abs=2e-6) for row in expected]
    assert returns.tolist() == [[1, 1, 0], [0, 0, 0], [-1, -1, -1], [1, 0, 0], [-1, -1, 0]]
    assert advantages.dtype == torch.float32


def test_dr_grpo_only_centres():
    advantages, _ = grpo_outcome(inputs_of([[3.0], [1.0], [2.0]], [[1]] * 3, [0, 0, 0], norm_adv_by_std=False))
    assert advantages.flatten().tolist() == [1.0, -1.0, 0.0]


@pytest.mark.parametrize("by_std", [True, False])
def test_no_variance_and_no_group_mean_no_advantage(by_std):
    rewards = [[0.1]] * 6 + [[5.0]]
    advantages, returns = grpo_outcome(inputs_of(rewards, [[1]] * 7, [0] * 6 + [1], norm_adv_by_std=by_std))
    assert advantages.flatten().tolist() == [0.0] * 7
    assert returns[6].item() == 5.0


def test_a_reward_outside_the_mask_does_not_count():
    advantages, _ = grpo_outcome(inputs_of([[1.0, 50.0], [0.0, 0.0]], [[1, 0], [1, 0]], [0, 0], norm_adv_by_std=False))
    assert advantages.tolist() == [[0.5, 0.0], [-0.5, 0.0]]


batches = st.integers(1, 8).flatmap(
    lambda num_rows: st.tuples(
        st.lists(
            st.lists(st.sampled_from([-1.0, -0.3, 0.0, 0.1, 1.0]), min_size=4, max_size=4),
            min_size=num_rows,
            max_size=num_rows,
        ),
        st.lists(st.integers(0, 4), min_size=num_rows, max_size=num_rows),
        st.lists(st.integers(0, 2), min_size=num_rows, max_size=num_rows),
        st.booleans(),
    )
)


@given(batches)
def test_equals_the_loop_over_tokens(batch):
    rewards, lengths, groups, by_std = batch
    mask = [[int(position < length) for position in range(4)] for length in lengths]
    inputs = inputs_of(rewards, mask, groups, norm_adv_by_std=by_std)
    found, _ = grpo_outcome(inputs)
    assert found.tolist() == [pytest.approx(row, abs=1e-4) for row in grpo_by_loop(inputs)]


@given(st.permutations(range(6)))
def test_permuted_rows_give_permuted_advantages(order):
    rewards = torch.tensor([[0.0, 1.0], [0.5, 0.0], [0.0, -1.0], [0.2, 0.0], [0.9, 0.1], [0.0, 0.0]])
    mask, groups = torch.ones(6, 2), torch.tensor([0, 0, 0, 1, 1, 1])
    straight, _ = grpo_outcome(AdvantageInputs(rewards, mask, groups))
    moved, _ = grpo_outcome(AdvantageInputs(rewards[order], mask, groups[order]))
    assert torch.allclose(moved, straight[order], atol=1e-6)
