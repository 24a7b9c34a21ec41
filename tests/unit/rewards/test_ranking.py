# SPDX-License-Identifier: Apache-2.0
"""Choices by hand and against brute force over all subsets, and the published numbers of 50 x 8 real responses."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl.rewards.ranking import (
    aggregate_steps,
    answer_key,
    argmax,
    argmax_at,
    choose_subsets,
    majority,
    pass_at,
    sizes_up_to,
    vote_at,
    weighted_vote,
)

CANDIDATES = st.lists(
    st.tuples(st.sampled_from(["a", "b", "c", None]), st.booleans(), st.sampled_from([0.0, 0.25, 0.5, 1.0])),
    min_size=1,
    max_size=6,
)


@pytest.mark.parametrize(
    ("first", "second"),
    [("0.5", r"\frac{1}{2}"), ("1{,}234", "1234.0"), (r"\boxed{x+1}", "$x + 1$"), ("**7**", "7."), ("3/6", "1/2")],
)
def test_equal_answers_have_one_key(first, second):
    assert answer_key(first) == answer_key(second)


def test_different_answers_and_no_answer():
    assert answer_key("7") != answer_key("8")
    assert answer_key("x") != answer_key("y")
    assert answer_key(None) is None
    assert answer_key("") is None
    assert answer_key("  $ $ ") is None


@pytest.mark.parametrize(("name", "value"), [("last", 0.9), ("min", 0.2), ("mean", 1.6 / 3), ("prod", 0.09)])
def test_aggregations(name, value):
    assert aggregate_steps([0.5, 0.2, 0.9], name) == pytest.approx(value)
    assert math.isnan(aggregate_steps([], name))


def test_unknown_aggregation_is_refused():
    with pytest.raises(ValueError, match="median"):
        aggregate_steps([0.5], "median")


def test_argmax_takes_the_first_of_equals_and_never_nan():
    assert argmax([0.1, 0.7, 0.7]) == 1
    assert argmax([math.nan, -3.0, math.nan]) == 1
    assert argmax([math.nan, math.nan]) == 0


def test_majority_first_seen_wins_ties():
    assert majority(["a", "b", "b", "a"]) == 0
    assert majority(["c", "b", "a", "b"]) == 1
    assert majority([None, None, "a"]) == 2
    assert majority([None, None]) == 0


def test_weighted_vote():
    assert weighted_vote(["a", "b", "b"], [0.9, 0.5, 0.5]) == 1
    assert weighted_vote(["a", "b", "b"], [0.9, 0.4, 0.4]) == 0
    assert weighted_vote(["a", "b", None], [0.1, math.nan, 9.0]) == 0
    assert weighted_vote(["a", "b"], [-2.0, -1.0]) == 1


def test_weighted_vote_ties_do_not_hang_on_the_order_of_addition():
    weights = [0.6, 0.1, 0.2, 0.3]
    assert 0.1 + 0.2 + 0.3 > 0.6
    assert weighted_vote(["a", "b", "b", "b"], weights) == 0


@given(CANDIDATES)
def test_expected_accuracies_equal_brute_force(candidates):
    keys, correct, scores = (list(column) for column in zip(*candidates, strict=True))
    total = len(candidates)
    for n in range(1, total + 1):
        every = list(itertools.combinations(range(total), n))
        subsets = choose_subsets(total, n)
        assert subsets.tolist() == [list(row) for row in every]
        oracle = np.mean([any(correct[i] for i in row) for row in every])
        best = np.mean([correct[max(row, key=lambda i: (scores[i], -i))] for row in every])
        voted = np.mean([correct[_brute_vote(keys, [1.0] * total, row)] for row in every])
        weighed = np.mean([correct[_brute_vote(keys, scores, row)] for row in every])
        assert pass_at(correct, n) == pytest.approx(oracle)
        assert argmax_at(scores, correct, n) == pytest.approx(best)
        assert vote_at(keys, correct, subsets) == pytest.approx(voted)
        assert vote_at(keys, correct, subsets, scores) == pytest.approx(weighed)


def _brute_vote(keys, weights, row):
    voters = [i for i in row if keys[i] is not None]
    if not voters:
        return row[0]
    return max(voters, key=lambda i: (sum(weights[j] for j in voters if keys[j] == keys[i]), -i))


def test_too_many_subsets_are_drawn_at_random_and_stay_valid():
    subsets = choose_subsets(40, 20, limit=50, seed=3)
    assert subsets.shape == (50, 20)
    assert (np.diff(subsets, axis=1) > 0).all()
    assert len({tuple(row) for row in subsets}) == 50
    assert np.array_equal(subsets, choose_subsets(40, 20, limit=50, seed=3))
    assert not np.array_equal(subsets, choose_subsets(40, 20, limit=50, seed=4))


def test_sizes():
    assert sizes_up_to(1) == [1]
    assert sizes_up_to(8) == [1, 2, 4, 8]
    assert sizes_up_to(6) == [1, 2, 4, 6]


@pytest.mark.parametrize("n", [0, 4])
def test_size_out_of_range_is_refused(n):
    with pytest.raises(ValueError, match="from 1 to"):
        pass_at([True, False, True], n)


def test_real_responses_give_the_known_numbers(shared_data: Path):
    rows = [json.loads(line) for line in (shared_data / "math/math_responses_50x8.jsonl").open(encoding="utf-8")]
    keys = [[answer_key(answer) for answer in row["pred"]] for row in rows]
    scores = [[score[0] for score in row["pred_score"]] for row in rows]
    labels = [row["score"] for row in rows]
    assert np.mean(labels) == pytest.approx(0.9375)
    assert np.mean([label[majority(key)] for key, label in zip(keys, labels, strict=True)]) == pytest.approx(0.96)
    assert np.mean([label[argmax(score)] for score, label in zip(scores, labels, strict=True)]) == pytest.approx(0.96)
    assert np.mean([any(label) for label in labels]) == pytest.approx(0.98)
    assert np.mean([pass_at(label, 8) for label in labels]) == pytest.approx(0.98)
    one = [argmax_at(score, label, 1) for score, label in zip(scores, labels, strict=True)]
    assert np.mean(one) == pytest.approx(0.9375)
