# SPDX-License-Identifier: Apache-2.0
"""Eq. 11, Eq. 12 and the dense row, against loops and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from verl.rewards.credit import (
    AGGREGATIONS,
    GATES,
    MODES,
    CreditRule,
    ScoreColumns,
    aggregate,
    blend,
    place_rewards,
    process_reward,
)
from verl.rewards.types import RuleVerdict, ScoredResponse
from verl.utils.errors import UserError


def response(scores, ends, is_correct=True, **changes) -> ScoredResponse:
    outcome = changes.setdefault("rule_score", 1.0)
    defaults = {"traj_score": scores[-1] if scores else 0.0, "prm_status": "scored"}
    return ScoredResponse(
        uid="g",
        index=0,
        verdict=RuleVerdict(outcome, is_correct),
        step_ends=np.array(ends, dtype=np.int64),
        step_scores=np.array(scores, dtype=np.float32),
        **(defaults | changes),
    )


def place(items, lengths, width, **rule):
    mask = torch.arange(width)[None, :] < torch.tensor(lengths)[:, None]
    return place_rewards(ScoreColumns.of(items), mask.long(), CreditRule(**rule))


def test_by_hand():
    """Two steps 0.5 and 0.9 ending at tokens 2 and 4 of 6, right answer: 0.75/2 * s each, and the rest at EOS."""
    row = place([response([0.5, 0.9], [2, 4])], [6], 7)[0]
    expected = [0, 0, 0.1875, 0, 0.3375, 0.75 * 0.9 + 0.25, 0]
    torch.testing.assert_close(row, torch.tensor(expected))
    assert row.dtype == torch.float32


def test_min_is_placed_as_the_fall_of_the_running_minimum():
    row = place([response([0.8, 0.9, 0.3, 0.6], [0, 1, 2, 3])], [5], 5, aggregation="min", alpha=0.0, beta=1.0)[0]
    torch.testing.assert_close(row, torch.tensor([0.8, 0.0, -0.5, 0.0, 0.0]))


def test_scalar_and_legacy_stand_on_the_last_token():
    item = response([0.5, 0.9], [2, 4])
    scalar = place([item], [6], 7, mode="scalar")[0]
    torch.testing.assert_close(scalar, torch.tensor([0, 0, 0, 0, 0, 0.25 + 0.75 * (0.7 + 0.9), 0]))
    legacy = place([response([0.6], [4])], [6], 7, mode="legacy")[0]
    torch.testing.assert_close(legacy, torch.tensor([0, 0, 0, 0, 0, 0.25 + 0.75 * 0.6, 0]))


def test_gates_touch_the_process_term_only():
    items = [response([0.5], [0], rule_score=1.0), response([0.5], [0], rule_score=-1.0, is_correct=False)]
    for gate, factors in {"none": (1, 1), "correct_only": (1, 0), "outcome_sign": (1, -1)}.items():
        sums = place(items, [2, 2], 2, gate=gate).sum(1)
        torch.testing.assert_close(sums, torch.tensor([0.25 + 0.75 * factors[0], -0.25 + 0.75 * factors[1]]))


def test_failed_and_off_rows_get_the_whole_outcome_and_empty_rows_its_share():
    items = [response([], [], prm_status="failed"), response([], [], prm_status="off"), response([], [])]
    torch.testing.assert_close(place(items, [2, 2, 2], 2).sum(1), torch.tensor([1.0, 1.0, 0.25]))


def test_overlong_penalty_is_added_to_the_outcome():
    torch.testing.assert_close(
        place([response([], [], prm_status="off", overlong_penalty=-0.4)], [3], 3), torch.tensor([[0.0, 0.0, 0.6]])
    )


def brute_force_row(scored, width, rule) -> list[float]:
    """The contract of the design, one addition at a time."""
    scores, ends, traj, outcome, is_correct, length = scored
    row = [0.0] * width
    gate = {"none": 1, "correct_only": int(is_correct), "outcome_sign": 1 if is_correct else -1}[rule.gate]
    previous = 0.0
    for k, score in enumerate(scores):
        so_far = scores[: k + 1]
        part = {
            "mean": score / len(scores),
            "last": score if k == len(scores) - 1 else 0.0,
            "min": min(so_far) - previous,
            "prod": math.prod(so_far) - previous,
        }[rule.aggregation]
        previous = {"min": min(so_far), "prod": math.prod(so_far)}.get(rule.aggregation, 0.0)
        row[length - 1 if rule.mode != "step" else ends[k]] += rule.beta * gate * part
    if scores and rule.mode != "legacy":
        row[length - 1] += rule.beta * gate * rule.alpha * traj
    row[length - 1] += (1 - rule.beta) * outcome
    return row


rules = st.builds(
    CreditRule,
    alpha=st.floats(0, 2),
    beta=st.floats(0, 1),
    aggregation=st.sampled_from(AGGREGATIONS),
    gate=st.sampled_from(GATES),
    mode=st.sampled_from(MODES),
)


@st.composite
def scored_rows(draw):
    length = draw(st.integers(1, 12))
    ends = sorted(draw(st.sets(st.integers(0, length - 1), max_size=6)))
    scores = draw(st.lists(st.floats(0, 1, width=32), min_size=len(ends), max_size=len(ends)))
    outcome = draw(st.sampled_from([-1.0, 0.0, 1.0, 0.37]))
    return scores, ends, draw(st.floats(0, 1, width=32)), outcome, draw(st.booleans()), length


@given(st.lists(scored_rows(), min_size=1, max_size=5), rules)
def test_rows_equal_brute_force(rows, rule):
    width = max(row[-1] for row in rows) + 2
    items = [response(s, e, is_correct=c, traj_score=t, rule_score=o) for s, e, t, o, c, _ in rows]
    mask = torch.arange(width)[None, :] < torch.tensor([row[-1] for row in rows])[:, None]
    placed = place_rewards(ScoreColumns.of(items), mask, rule)
    expected = torch.tensor([brute_force_row(row, width, rule) for row in rows])
    torch.testing.assert_close(placed, expected, atol=1e-5, rtol=1e-5)
    assert not placed[~mask].any(), "nothing outside the response"


@given(scored_rows(), rules)
def test_row_sums_to_eq_12_without_a_gate(row, rule):
    scores, ends, traj, outcome, is_correct, length = row
    rule = CreditRule(rule.alpha, rule.beta, rule.aggregation, "none", "step")
    item = response(scores, ends, traj_score=traj, rule_score=outcome, is_correct=is_correct)
    placed = place_rewards(ScoreColumns.of([item]), torch.ones(1, length), rule)
    agg = {"mean": np.mean, "min": np.min, "last": lambda s: s[-1], "prod": np.prod}[rule.aggregation]
    r_hat = float(agg(np.array(scores)) + rule.alpha * traj) if scores else 0.0
    assert float(placed.sum()) == pytest.approx((1 - rule.beta) * outcome + rule.beta * r_hat, abs=1e-5)
    assert blend(outcome, process_reward(np.array(scores), traj, rule), rule.beta) == pytest.approx(
        float(placed.sum()), abs=1e-5
    )


def test_aggregates():
    scores = np.array([0.5, 0.25, 1.0])
    assert [round(aggregate(scores, a), 6) for a in AGGREGATIONS] == [0.583333, 0.25, 1.0, 0.125]
    assert [aggregate(scores[:0], a) for a in AGGREGATIONS] == [0.0] * 4


def test_equally_long_rows_stay_ragged_columns():
    columns = ScoreColumns.of([response([0.1, 0.2], [0, 1]), response([0.3, 0.4], [0, 1])])
    assert columns.step_scores.dtype == object and columns.step_scores[1].tolist() == pytest.approx([0.3, 0.4])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"aggregation": "sum"}, "aggregation='sum'"),
        ({"gate": "x"}, "gate='x'"),
        ({"mode": "x"}, "mode='x'"),
        ({"beta": 1.5}, "beta=1.5"),
        ({"aggregation": "prod", "score_space": "signed"}, "needs probabilities"),
    ],
)
def test_settings_that_mean_nothing_are_refused(bad, message):
    with pytest.raises(UserError, match=message):
        CreditRule(**bad)


def test_rows_that_cannot_be_placed_are_refused():
    with pytest.raises(ValueError, match="row 0: 1 step scores"):
        place([response([0.5], [3])], [3], 4)
    with pytest.raises(ValueError, match="NaN"):
        place([response([math.nan], [0])], [3], 4)
    with pytest.raises(ValueError, match="no response token"):
        place([response([], [])], [0], 4)
