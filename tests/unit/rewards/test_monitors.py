# SPDX-License-Identifier: Apache-2.0
"""Monitors against loops and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl.rewards.monitors import auc, score_metrics
from verl.rewards.types import RuleVerdict, ScoredResponse


def response(scores, is_correct, status="scored", flags=()) -> ScoredResponse:
    return ScoredResponse(
        "g",
        0,
        RuleVerdict(float(is_correct), is_correct),
        1.0 if is_correct else -1.0,
        step_scores=np.array(scores, dtype=np.float32),
        step_ends=np.arange(len(scores)),
        prm_status=status,
        flags=flags,
    )


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.booleans()), min_size=2, max_size=12))
def test_auc_counts_pairs(rows):
    right = [s for s, r in rows if r]
    wrong = [s for s, r in rows if not r]
    value = auc(np.array([s for s, _ in rows]), np.array([r for _, r in rows]))
    if not right or not wrong:
        assert math.isnan(value)
        return
    pairs = [(a > b) + 0.5 * (a == b) for a in right for b in wrong]
    assert value == pytest.approx(sum(pairs) / len(pairs))


def test_metrics_by_hand():
    batch = [
        response([0.9, 0.8], True),
        response([0.2, 0.9995], False, "retried"),
        response([], False, flags=("empty",)),
        response([], False, "failed"),
    ]
    metrics = score_metrics(batch, [10, 30, 1, 5])
    assert metrics["reward/rule_score/mean"] == -0.5
    assert metrics["prm/auc/mean"] == 1.0
    assert metrics["prm/on_right/mean"] == pytest.approx(0.85)
    assert metrics["prm/on_wrong/mean"] == pytest.approx(0.59975)
    assert metrics["prm/first_step/mean"] == pytest.approx(0.55)
    assert metrics["prm/last_step/mean"] == pytest.approx(0.89975)
    assert metrics["prm/steps_per_response/mean"] == 1.0
    assert metrics["prm/tokens_per_step/mean"] == 10.0
    assert metrics["prm/saturated_steps/share"] == 0.25
    assert metrics["prm/empty/share"] == metrics["prm/unscored/share"] == metrics["prm/retried/share"] == 0.25


def test_saturation_knows_the_score_space():
    for space, high in {"prob": 0.9999, "signed": 0.9998, "logit_diff": 9.0}.items():
        assert score_metrics([response([high], True)], [3], space)["prm/saturated_steps/share"] == 1.0
    assert score_metrics([response([0.0], True)], [3], "signed")["prm/saturated_steps/share"] == 0.0


def test_what_a_batch_cannot_say_is_left_out():
    metrics = score_metrics([response([0.5], True)], [3])
    assert "prm/auc/mean" not in metrics and "prm/on_wrong/mean" not in metrics
    assert all(math.isfinite(value) for value in metrics.values())
    assert not any(name.startswith("prm/") for name in score_metrics([response([], True, "off")], [3]))
    assert score_metrics([], []) == {}
