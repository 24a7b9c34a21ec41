# SPDX-License-Identifier: Apache-2.0
"""GDPO against hand-worked numbers and a loop over responses."""

from __future__ import annotations

import math
import statistics

import pytest
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
from verl.algorithms.gdpo import gdpo
from verl.algorithms.inputs import EstimatorOptions

APART = EstimatorOptions(gdpo_batch_norm=False)


def scaled_by_loop(value: float, pool: list[float], by_std: bool) -> float:
    if len(pool) < 2:
        return 0.0
    centred = value - math.fsum(pool) / len(pool)
    if not by_std:
        return centred
    std = statistics.stdev(pool)
    return centred / (std + 1e-6) if std >= 1e-6 else 0.0


def blended_by_loop(batch: StepBatch, row: int, beta: float, by_std: bool) -> float:
    group = batch.group_of(row)
    outcome = scaled_by_loop(batch.rules[row], [batch.rules[other] for other in group], by_std)
    if not batch.is_group_scored(row):
        return outcome
    quality = [sum(score for score, _ in batch.steps[other]) / max(1, len(batch.steps[other])) for other in group]
    return beta * scaled_by_loop(quality[group.index(row)], quality, by_std) + (1 - beta) * outcome


def test_hand_worked_pair_without_the_batch():
    # quality 0.9 and 0.5, outcomes -1 and 1: both are +-1/sqrt 2 after normalising, however far apart they were
    batch = batch_of([[(0.9, 0)], [(0.8, 0), (0.2, 1)]], [-1.0, 1.0])
    advantages, returns = gdpo(batch.inputs(beta=0.75, options=APART))
    half = 0.5 / math.sqrt(2)
    assert_rows(advantages, [[half, half, 0], [-half] * 3], 1e-5)
    assert_rows(returns, [[0.425, 0.425, 0], [0.625] * 3], 1e-6)


def test_the_batch_sets_the_scale():
    batch = batch_of([[(0.9, 0)], [(0.8, 0), (0.2, 1)]], [-1.0, 1.0])
    assert gdpo(batch.inputs(beta=0.75))[0][:, 0].tolist() == pytest.approx([0.5**0.5, -(0.5**0.5)], abs=1e-5)


def test_a_group_of_one_and_an_even_group_get_nothing():
    batch = batch_of([[(0.9, 0)], [(0.5, 0)], [(0.5, 0)]], [1.0, 1.0, 1.0], groups=[0, 1, 1])
    assert gdpo(batch.inputs())[0].abs().max() == 0


@given(step_batches(), st.booleans(), st.sampled_from([0.0, 0.75, 1.0]), st.booleans())
def test_equals_the_loop(batch, by_std, beta, over_batch):
    found, _ = gdpo(
        batch.inputs(beta=beta, norm_adv_by_std=by_std, options=EstimatorOptions(gdpo_batch_norm=over_batch))
    )
    blended = [blended_by_loop(batch, row, beta, by_std) for row in range(len(batch.rules))]
    if over_batch:
        blended = [scaled_by_loop(value, blended, True) for value in blended]
    assert_rows(found, table_of(batch, lambda row, _: blended[row]))


@given(step_batches(), st.randoms(use_true_random=False))
def test_permuted_rows_give_permuted_advantages(batch, random):
    assert_order_does_not_matter(gdpo, batch, random)
