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


def response(scores, is_correct, status="scored", flags=(), **more) -> ScoredResponse:
    return ScoredResponse(
        "g",
        0,
        RuleVerdict(float(is_correct), is_correct),
        1.0 if is_correct else -1.0,
        step_scores=np.array(scores, dtype=np.float32),
        step_ends=np.arange(len(scores)),
        step_spans=tuple((n, n + 1) for n in range(len(scores))),
        prm_status=status,
        flags=flags,
        **more,
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


def test_scores_by_position_against_a_loop():
    rng = np.random.default_rng(0)
    batch = [response(rng.random(count), True) for count in (1, 3, 7, 20, 40)]
    metrics = score_metrics(batch, [9] * 5)
    buckets: dict[str, list[float]] = {}
    for one in batch:
        for place, score in enumerate(one.step_scores, start=1):
            name = str(place) if place <= 4 else "5-8" if place <= 8 else "9-16" if place <= 16 else "17+"
            buckets.setdefault(name, []).append(float(score))
        buckets.setdefault("last", []).append(float(one.step_scores[-1]))
    found = {name for name in metrics if name.startswith("prm/position/")}
    assert found == {f"prm/position/{name}/{what}" for name in buckets for what in ("mean", "std")}
    for name, values in buckets.items():
        assert metrics[f"prm/position/{name}/mean"] == pytest.approx(np.mean(values))
        assert metrics[f"prm/position/{name}/std"] == pytest.approx(np.std(values))


def test_positions_nobody_reached_are_left_out():
    metrics = score_metrics([response([0.5, 0.25], True)], [4])
    assert {name for name in metrics if "position" in name} == {
        f"prm/position/{name}/{what}" for name in ("1", "2", "last") for what in ("mean", "std")
    }


def test_repeated_steps_count_over_all_steps():
    batch = [
        response([0.1] * 4, True, num_repeated_steps=3, flags=("repeated",)),
        response([0.1] * 6, True),
    ]
    metrics = score_metrics(batch, [4, 6])
    assert metrics["prm/repeated_steps/share"] == 0.3 and metrics["prm/repeated/share"] == 0.5


def test_own_numbers_of_a_function_are_averaged_and_displace_none_of_ours():
    verdicts = [
        RuleVerdict(0.5, True, metrics={"format": 1.0, "rule_score": 99.0}),
        RuleVerdict(0.5, True, metrics={"format": 0.0, "rare": 3.0}),
    ]
    metrics = score_metrics([ScoredResponse("g", n, v, v.score) for n, v in enumerate(verdicts)], [1, 1])
    assert metrics["reward/format/mean"] == 0.5 and metrics["reward/rare/mean"] == 3.0
    assert metrics["reward/rule_score/mean"] == 0.5


def test_no_answer_is_said_only_by_those_who_look_for_one():
    def share(*verdicts):
        scored = [ScoredResponse("g", n, verdict, 0.0) for n, verdict in enumerate(verdicts)]
        return score_metrics(scored, [1] * len(scored)).get("reward/no_answer/share")

    silent = RuleVerdict(1.0, True, says_predicted=False)
    none, late = RuleVerdict(-1.0, False), RuleVerdict(0.0, False, status="timeout")
    assert share(RuleVerdict(1.0, True, "4"), none, none, silent, late) == pytest.approx(2 / 3)
    assert share(silent, late) is None


def test_a_functions_own_step_scores_are_not_called_saturated():
    metrics = score_metrics([response([0.0, 1.0], True, flags=("own_steps",)), response([0.5], True)], [2, 1])
    assert metrics["prm/saturated_steps/share"] == 0.0
    assert "prm/saturated_steps/share" not in score_metrics([response([1.0], True, flags=("own_steps",))], [1])
