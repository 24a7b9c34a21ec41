# SPDX-License-Identifier: Apache-2.0
"""Clip and Delta against hand-worked numbers, their bounds, and a loop over tokens."""

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
from verl.algorithms.grpo_delta import grpo_delta
from verl.algorithms.inputs import EstimatorOptions

CLIP = EstimatorOptions(delta_delta=False)
DELTA = EstimatorOptions(delta_clip=False)


def rewards_by_loop(scores: list[float], options: EstimatorOptions) -> list[float]:
    if options.delta_clip:
        scores = [min(score - options.delta_eta, 0.0) for score in scores]
    if not options.delta_delta:
        return scores
    return [score - following for score, following in zip(scores, [*scores[1:], 0.0], strict=bool(scores))]


def sums_by_loop(steps: list[tuple[float, int]], options: EstimatorOptions) -> list[float]:
    rewards = rewards_by_loop([score for score, _ in steps], options)
    return [math.fsum(rewards[place:]) for place in range(len(rewards))]


def scaled_by_loop(value: float, pool: list[float], by_std: bool) -> float:
    if len(pool) < 2:
        return 0.0
    centred = value - math.fsum(pool) / len(pool)
    if not by_std:
        return centred
    std = statistics.stdev(pool)
    return centred / (std + 1e-6) if std >= 1e-6 else 0.0


def advantage_by_loop(batch: StepBatch, row: int, token: int, inputs) -> float:
    group, by_std = batch.group_of(row), inputs.norm_adv_by_std
    outcome = scaled_by_loop(batch.rules[row], [batch.rules[other] for other in group], by_std)
    if not batch.is_group_scored(row):
        return outcome
    pool = [value for other in group for value in sums_by_loop(batch.steps[other], inputs.options)]
    process = 0.0
    for value, (_, end) in zip(sums_by_loop(batch.steps[row], inputs.options), batch.steps[row], strict=True):
        if end >= token:
            process = scaled_by_loop(value, pool, by_std)
            break
    return inputs.beta * process + (1 - inputs.beta) * outcome


def test_hand_worked_delta():
    # sums to come are the scores 0.2, 0.8 | 0.5: mean 0.5, deviation 0.3
    batch = batch_of([[(0.2, 1), (0.8, 2)], [(0.5, 0)]], [0.0, 0.0])
    advantages, returns = grpo_delta(batch.inputs(beta=1.0, options=DELTA))
    assert_rows(advantages, [[-1, -1, 1, 0], [0, 0, 0, 0]], 1e-5)
    assert_rows(returns, [[0.2, 0.2, 0.8, 0], [0.5, 0, 0, 0]], 1e-6)


def test_hand_worked_clip():
    # 0.2 - 0.9 = -0.7, 0.95 earns nothing, 0.6 - 0.9 = -0.3; sums -1, -0.3, -0.3
    batch = batch_of([[(0.2, 0), (0.95, 1), (0.6, 2)]], [0.0])
    returns = grpo_delta(batch.inputs(beta=1.0, options=CLIP))[1]
    assert_rows(returns, [[-1.0, -0.3, -0.3, 0]], 1e-6)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6), st.lists(st.floats(0, 1), max_size=6))
def test_delta_telescopes(scores, more):
    """What is to come at the first token is the first score, however many steps follow."""

    def at_start(row: list[float]) -> float:
        batch = batch_of([[(score, end) for end, score in enumerate(row)]], [0.0])
        return float(grpo_delta(batch.inputs(beta=1.0, options=DELTA))[1][0, 0])

    assert at_start(scores) == pytest.approx(scores[0], abs=1e-6)
    assert at_start(scores) == at_start(scores + more)
    assert sum(rewards_by_loop(scores, DELTA)) == pytest.approx(scores[0], abs=1e-6)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6), st.floats(0, 1))
def test_with_clip_a_further_step_never_pays(scores, another):
    def at_start(row: list[float]) -> float:
        batch = batch_of([[(score, end) for end, score in enumerate(row)]], [0.0])
        return float(grpo_delta(batch.inputs(beta=1.0, options=CLIP))[1][0, 0])

    assert at_start([*scores, another]) <= at_start(scores) + 1e-6
    assert at_start([*scores, 1.0]) == at_start(scores)


def test_scores_above_eta_and_a_lone_step_give_nothing():
    assert grpo_delta(batch_of([[(0.95, 0)], [(0.99, 0)]], [0.0, 0.0]).inputs(beta=1.0))[0].abs().max() == 0
    assert grpo_delta(batch_of([[(0.3, 0)], []], [0.0, 0.0]).inputs(beta=1.0))[0].abs().max() == 0


@given(step_batches(), st.booleans(), st.sampled_from([0.0, 0.75, 1.0]), st.sampled_from([CLIP, DELTA, None]))
def test_equals_the_loop_over_tokens(batch, by_std, beta, options):
    inputs = batch.inputs(beta=beta, norm_adv_by_std=by_std, options=options or EstimatorOptions())
    expected = table_of(batch, lambda row, token: advantage_by_loop(batch, row, token, inputs))
    assert_rows(grpo_delta(inputs)[0], expected)


@given(step_batches(), st.randoms(use_true_random=False))
def test_permuted_rows_give_permuted_advantages(batch, random):
    assert_order_does_not_matter(grpo_delta, batch, random)
