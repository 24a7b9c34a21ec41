# SPDX-License-Identifier: Apache-2.0
"""PAPO against hand-worked numbers and a loop over responses."""

from __future__ import annotations

import math
import statistics

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
from verl.algorithms.inputs import AdvantageInputs
from verl.algorithms.papo import papo


def scaled_by_loop(value: float, pool: list[float], by_std: bool) -> float:
    if len(pool) < 2:
        return 0.0
    centred = value - math.fsum(pool) / len(pool)
    if not by_std:
        return centred
    std = statistics.stdev(pool)
    return centred / (std + 1e-6) if std >= 1e-6 else 0.0


def advantage_by_loop(batch: StepBatch, row: int, beta: float, by_std: bool) -> float:
    group = batch.group_of(row)
    outcome = scaled_by_loop(batch.rules[row], [batch.rules[other] for other in group], by_std)
    if not batch.is_group_scored(row):
        return outcome
    quality = {
        other: math.fsum(score for score, _ in batch.steps[other]) / max(1, len(batch.steps[other])) for other in group
    }
    pool = [quality[other] for other in group if batch.correct[other]]
    process = scaled_by_loop(quality[row], pool, by_std) if batch.correct[row] else 0.0
    return beta * process + (1 - beta) * outcome


def test_hand_worked_group():
    # Correct: mean scores 0.9 and 0.5, z = +-1/sqrt 2. Outcomes 1, 1, -1: mean 1/3, deviation 2/sqrt 3.
    batch = batch_of([[(0.9, 0)], [(0.8, 0), (0.2, 1)], [(1.0, 0)]], [1.0, 1.0, -1.0])
    advantages, returns = papo(batch.inputs(beta=0.5))
    right, wrong, z = 1 / math.sqrt(3), -2 / math.sqrt(3), 1 / math.sqrt(2)
    first, second = (right + z) / 2, (right - z) / 2
    assert_rows(advantages, [[first, first, 0], [second] * 3, [wrong / 2, wrong / 2, 0]], 1e-5)
    assert_rows(returns, [[0.95, 0.95, 0], [0.75] * 3, [-0.5, -0.5, 0]], 1e-6)


def test_the_process_speaks_where_all_are_right_and_is_silent_where_all_are_wrong():
    steps = [[(0.9, 0)], [(0.5, 0)]]
    z = 1 / math.sqrt(2)
    assert_rows(papo(batch_of(steps, [1.0, 1.0]).inputs(beta=1.0))[0], [[z, z], [-z, -z]], 1e-5)
    assert papo(batch_of(steps, [-1.0, -1.0]).inputs(beta=1.0))[0].abs().max() == 0


def test_one_correct_response_has_nobody_to_be_compared_with():
    batch = batch_of([[(0.9, 0)], [(0.1, 0)]], [1.0, -1.0])
    assert papo(batch.inputs(beta=1.0))[0].abs().max() == 0


def test_equal_qualities_give_no_process_term():
    batch = batch_of([[(0.9995, 0)], [(0.9995, 0), (0.9995, 1)]], [1.0, 1.0])
    assert papo(batch.inputs(beta=1.0))[0].abs().max() == 0


def test_an_unscored_response_puts_its_group_on_the_outcome_alone():
    batch = batch_of([[], [(0.5, 0)]], [1.0, -1.0], scored=[False, True])
    z = 1 / math.sqrt(2)
    assert_rows(papo(batch.inputs(beta=0.75))[0], [[z, 0], [-z, -z]], 1e-5)


def test_the_verdict_is_required():
    inputs = AdvantageInputs(torch.zeros(1, 1), torch.ones(1, 1), torch.tensor([0]))
    with pytest.raises(ValueError, match="is_correct"):
        papo(inputs)


@given(step_batches(), st.booleans(), st.sampled_from([0.0, 0.75, 1.0]))
def test_equals_the_loop(batch, by_std, beta):
    found, _ = papo(batch.inputs(beta=beta, norm_adv_by_std=by_std))
    assert_rows(found, table_of(batch, lambda row, _: advantage_by_loop(batch, row, beta, by_std)))


@given(step_batches())
def test_process_terms_sum_to_zero_over_the_correct_and_vanish_on_the_wrong(batch):
    inputs = batch.inputs(beta=1.0)
    found = papo(AdvantageInputs(**{**vars(inputs), "response_mask": torch.ones_like(inputs.response_mask)}))[0][:, 0]
    for group in {group for row, group in enumerate(batch.groups) if batch.is_group_scored(row)}:
        rows = [row for row in range(len(batch.groups)) if batch.groups[row] == group]
        assert sum(float(found[row]) for row in rows if batch.correct[row]) == pytest.approx(0.0, abs=1e-4)
        assert all(found[row] == 0 for row in rows if not batch.correct[row])


@given(step_batches(), st.randoms(use_true_random=False))
def test_permuted_rows_give_permuted_advantages(batch, random):
    assert_order_does_not_matter(papo, batch, random)
