# SPDX-License-Identifier: Apache-2.0
"""Each limit by hand, their order, and that nothing unscored is ever kept."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl.rewards.selection import SelectionRule, select

SCORES = [0.9, 0.8, 0.7, 0.6, math.nan, 0.5]
PROMPTS = ["p", "p", "q", "q", "q", "r"]
SOURCES = ["math", "math", "math", "code", "code", "code"]


def kept(**rule):
    return select(SCORES, PROMPTS, SOURCES, SelectionRule(**rule)).kept.tolist()


def test_without_limits_everything_scored_is_kept():
    selection = select(SCORES, PROMPTS, SOURCES, SelectionRule())
    assert selection.kept.tolist() == [0, 1, 2, 3, 5]
    assert selection.dropped == {"unscored": 1}


def test_each_limit():
    assert kept(threshold=0.7) == [0, 1, 2]
    assert kept(per_prompt=1) == [0, 2, 5]
    assert kept(top_k=2) == [0, 1]
    assert kept(top_k=100) == [0, 1, 2, 3, 5]
    assert kept(default_quota=1) == [0, 3]
    assert kept(quota={"math": 2}) == [0, 1, 3, 5]
    assert kept(quota={"math": 2}, default_quota=0) == [0, 1]


def test_limits_work_one_after_the_other():
    rule = SelectionRule(threshold=0.55, per_prompt=1, quota={"math": 5}, default_quota=0, top_k=1)
    selection = select(SCORES, PROMPTS, SOURCES, rule)
    assert selection.kept.tolist() == [0]
    assert selection.dropped == {"unscored": 1, "threshold": 1, "per_prompt": 2, "quota": 0, "top_k": 1}


def test_first_of_equal_scores_is_kept_and_order_is_the_input_order():
    scores = [0.5, 0.9, 0.5, 0.9]
    assert select(scores, ["p"] * 4, ["s"] * 4, SelectionRule(top_k=3)).kept.tolist() == [0, 1, 3]


def test_nothing_at_all():
    selection = select([], [], [], SelectionRule(per_prompt=1, top_k=3))
    assert selection.kept.tolist() == []
    assert selection.kept.dtype == np.int64


@given(
    st.lists(
        st.tuples(st.floats(0, 1) | st.just(math.nan), st.sampled_from("pqr"), st.sampled_from("st")), max_size=25
    ),
    st.integers(1, 4),
)
def test_per_prompt_equals_brute_force(rows, k):
    scores, prompts, sources = ([row[n] for row in rows] for n in range(3))
    result = select(scores, prompts, sources, SelectionRule(per_prompt=k))
    wanted = []
    for prompt in set(prompts):
        places = [n for n in range(len(rows)) if prompts[n] == prompt and not math.isnan(scores[n])]
        wanted += sorted(places, key=lambda n: (-scores[n], n))[:k]
    assert result.kept.tolist() == sorted(wanted)
    assert len(rows) == len(result.kept) + sum(result.dropped.values())


@pytest.mark.parametrize("rule", [{"top_k": 0}, {"per_prompt": -1}, {"quota": {"s": -1}}, {"threshold": math.nan}])
def test_meaningless_limits_are_refused(rule):
    with pytest.raises(ValueError, match="too small|number"):
        SelectionRule(**rule)


def test_columns_of_different_length_are_refused():
    with pytest.raises(ValueError, match="2 scores, 1 prompts"):
        select([0.1, 0.2], ["p"], ["s", "s"], SelectionRule())
