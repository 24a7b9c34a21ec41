# SPDX-License-Identifier: Apache-2.0
"""PURE's min-form against hand-worked numbers, its limits in T, and a loop over tokens."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.step_batches import (
    StepBatch,
    assert_order_does_not_matter,
    assert_rows,
    batch_of,
    step_batches,
    table_of,
)
from verl.algorithms.grpo_minform import grpo_minform
from verl.algorithms.inputs import AdvantageInputs, EstimatorOptions

COLD = EstimatorOptions(minform_temperature=1e-4)


def weighted_by_loop(steps: list[tuple[float, int]], temperature: float) -> list[float]:
    if not steps:
        return []
    lowest = min(score for score, _ in steps)
    raised = [math.exp(-(score - lowest) / temperature) for score, _ in steps]
    return [score * weight / sum(raised) for (score, _), weight in zip(steps, raised, strict=True)]


def advantage_by_loop(batch: StepBatch, row: int, token: int, beta: float, temperature: float) -> float:
    others = batch.others_of(row)
    if not others:
        return 0.0
    beta = beta if batch.is_group_scored(row) else 0.0
    rates = [
        sum(weighted_by_loop(batch.steps[other], temperature)) / (batch.steps[other][-1][1] + 1)
        if batch.steps[other]
        else 0.0
        for other in others
    ]
    baseline = sum(rates) / len(others)
    process, first = 0.0, 0
    for reward, (_, end) in zip(weighted_by_loop(batch.steps[row], temperature), batch.steps[row], strict=True):
        if end >= token:
            process += reward - baseline * len(range(first, end + 1))
        first = end + 1
    outcome = batch.rules[row] - sum(batch.rules[other] for other in others) / len(others)
    return beta * process + (1 - beta) * outcome


def test_hand_worked_pair_at_the_minimum():
    # r' = (0.8 | 0, 0 | 0.2), rates 0.8 / 2 tokens and 0.2 / 4: each pays the other's rate for its tokens.
    batch = batch_of([[(0.8, 1)], [(0.9, 1), (0.2, 3)]], [1.0, -1.0])
    advantages, returns = grpo_minform(batch.inputs(beta=1.0, options=COLD))
    first, second = 0.8 - 2 * 0.05, 0.2 - 4 * 0.4
    assert_rows(advantages, [[first, first, 0, 0, 0], [second, second, 0.2 - 0.8, 0.2 - 0.8, 0]], 1e-6)
    assert_rows(returns, [[0.8, 0.8, 0, 0, 0], [0.2, 0.2, 0.2, 0.2, 0]], 1e-6)


def test_the_outcome_is_compared_with_the_others_and_lies_on_every_token():
    batch = batch_of([[(0.5, 0)], [], [(0.1, 1)]], [1.0, -1.0, 0.0])
    advantages, returns = grpo_minform(batch.inputs(beta=0.0))
    assert_rows(advantages, [[1.5, 1.5, 0], [-1.5, 0, 0], [0, 0, 0]], 1e-6)
    assert_rows(returns, [[1, 1, 0], [-1, 0, 0], [0, 0, 0]], 1e-6)


def test_equal_responses_cancel_at_the_first_token():
    batch = batch_of([[(0.9, 0), (0.4, 4)]] * 3, [1.0] * 3)
    assert grpo_minform(batch.inputs(beta=1.0))[0][:, 0].tolist() == pytest.approx([0.0] * 3, abs=1e-6)


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=8))
def test_the_sum_goes_to_the_minimum_with_the_temperature(scores):
    batch = batch_of([[(score, end) for end, score in enumerate(scores)]], [0.0])

    def total(temperature: float) -> float:
        options = EstimatorOptions(minform_temperature=temperature)
        return float(grpo_minform(batch.inputs(beta=1.0, options=options))[1][0, 0])

    assert total(1e-6) == pytest.approx(min(scores), abs=1e-4)
    assert total(1e6) == pytest.approx(sum(scores) / len(scores), abs=1e-4)
    assert min(scores) - 1e-5 <= total(0.1) <= sum(scores) / len(scores) + 1e-5


def test_a_group_of_one_has_no_baseline():
    assert grpo_minform(batch_of([[(0.9, 0)]], [1.0]).inputs())[0].tolist() == [[0.0, 0.0]]


def test_an_unscored_response_puts_its_group_on_the_outcome_alone():
    batch = batch_of([[], [(0.5, 0)]], [1.0, -1.0], scored=[False, True])
    assert_rows(grpo_minform(batch.inputs(beta=0.75))[0], [[2, 0], [-2, -2]], 1e-6)


def test_a_missing_column_is_named():
    inputs = AdvantageInputs(torch.zeros(1, 1), torch.ones(1, 1), torch.tensor([0]))
    with pytest.raises(ValueError, match="step_scores.*rule_scores"):
        grpo_minform(inputs)


@given(step_batches(), st.sampled_from([0.0, 0.75, 1.0]), st.sampled_from([0.02, 0.1, 1.0]))
def test_equals_the_loop_over_tokens(batch, beta, temperature):
    found, _ = grpo_minform(batch.inputs(beta=beta, options=EstimatorOptions(minform_temperature=temperature)))
    assert_rows(found, table_of(batch, lambda row, token: advantage_by_loop(batch, row, token, beta, temperature)))


@given(step_batches(), st.randoms(use_true_random=False))
def test_permuted_rows_give_permuted_advantages(batch, random):
    assert_order_does_not_matter(grpo_minform, batch, random)
