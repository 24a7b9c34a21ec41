# SPDX-License-Identifier: Apache-2.0
"""Steps and tokens: whose step a token is, which steps are still to come, and when scores count."""

from __future__ import annotations

from dataclasses import replace

import torch
from hypothesis import given

from tests.helpers.step_batches import StepBatch, assert_rows, batch_of, step_batches
from verl.algorithms.steps import later_steps, mean_step_scores, own_step, process_weights, step_columns


def by_token(batch: StepBatch, value) -> list[list[float]]:
    return [[value(row, token) for token in range(max([1, *batch.lengths]))] for row in batch.steps]


@given(step_batches())
def test_tokens_against_a_loop(batch):
    scores, ends, mask, _ = step_columns(batch.inputs())
    width = max([1, *batch.lengths])
    to_come = by_token(batch, lambda row, token: sum(score for score, end in row if end >= token))
    assert_rows(later_steps(scores, ends, mask, width), to_come, 1e-5)
    own = by_token(batch, lambda row, token: next((score for score, end in row if end >= token), 0.0))
    assert_rows(own_step(scores, ends, mask, width), own, 1e-5)
    means = [[sum(score for score, _ in row) / max(1, len(row))] for row in batch.steps]
    assert_rows(mean_step_scores(scores, mask)[:, None], means, 1e-5)


def test_a_failed_score_takes_the_weight_from_its_whole_group():
    batch = batch_of([[(0.5, 0)]] * 3, [1.0] * 3, groups=[7, 3, 7], scored=[True, True, False])
    assert process_weights(batch.inputs(beta=0.5)).tolist() == [0.0, 0.5, 0.0]
    assert process_weights(replace(batch.inputs(beta=0.5), is_scored=None)).tolist() == [0.5] * 3


def test_what_the_mask_hides_is_zero():
    scores, ends, mask, outcome = step_columns(batch_of([[(0.5, 0)], []], [1.0, -1.0]).inputs())
    assert scores.tolist() == [[0.5], [0.0]] and ends.tolist() == [[0], [0]] and mask.tolist() == [[True], [False]]
    assert outcome.dtype == torch.float32
