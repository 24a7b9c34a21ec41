# SPDX-License-Identifier: Apache-2.0
"""Known reward hacks against every estimator: what must not pay, what is known to pay, and the page that says so."""

from __future__ import annotations

import math

import pytest

from tests.helpers.hacks import (
    DOCUMENT,
    GOOD,
    GROUP,
    HACKS,
    RIGHT_ROW,
    SLIP,
    WRONG_ROW,
    change,
    growth,
    methods,
    outcome_of,
    repeat_first_step,
    tables,
    toy_scores,
    with_tables,
)
from verl.algorithms import AdvantageEstimator

METHODS = methods()
SPACES = ("prob", "signed")
REPEAT_RIGHT, REPEAT_WRONG, MERGE_RIGHT, MERGE_WRONG, DELETE, NOTHING = HACKS
FILTERED = "prof filter, then grpo on the outcome"
ALL = [(name, space) for name in METHODS for space in SPACES if name != FILTERED]
TINY = 1e-5


def test_the_toy_scores_of_the_group():
    assert [toy_scores(text) for text in GROUP] == [
        [0.9, 0.9, 0.9, 0.8],
        [0.9, 0.2, 0.4, 0.2],
        [0.9, 0.9, 0.2, 0.2],
        [0.2, 0.2, 0.2, 0.2],
    ]
    assert toy_scores(HACKS[MERGE_RIGHT][1](GOOD)) == [0.8] and toy_scores(HACKS[MERGE_WRONG][1](SLIP)) == [0.2]
    assert toy_scores(HACKS[REPEAT_WRONG][1](SLIP)) == [0.9] * 4 + [0.9, 0.9, 0.2, 0.2]
    assert toy_scores(HACKS[DELETE][1](GOOD)) == [0.9, 0.9, 0.9] and toy_scores(HACKS[NOTHING][1](SLIP)) == []


def test_every_registered_estimator_takes_part():
    assert {method.estimator for method in METHODS.values()} == set(AdvantageEstimator)


@pytest.mark.parametrize(("name", "space"), ALL)
def test_deleting_the_answer_never_pays(name, space):
    assert change(METHODS[name], DELETE, space).advantage < 0
    assert change(METHODS[name], DELETE, space).reward < 0


@pytest.mark.parametrize(("name", "space"), ALL)
def test_writing_nothing_never_reaches_the_right_answer(name, space):
    nothing = outcome_of(METHODS[name], WRONG_ROW, HACKS[NOTHING][1], space)
    right = outcome_of(METHODS[name], RIGHT_ROW, None, space)
    assert nothing.advantage < right.advantage and nothing.reward < right.reward


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize(
    "name",
    ["papo", "grpo_delta", "grpo_delta, delta only", "grpo, aggregation=min", "grpo, gate=correct_only"],
)
def test_repeating_a_step_does_not_pay_a_wrong_answer(name, space):
    paid = growth(METHODS[name], space)
    assert max(paid) <= paid[0] + TINY


def test_repeating_a_step_pays_no_mean_beyond_its_best_step():
    """aggregation=mean: every copy pays, and the reward stays below that of an answer made of the best step alone."""
    rewards = [outcome_of(METHODS["grpo"], WRONG_ROW, repeat_first_step(copies)).reward for copies in (0, 4, 64, 1024)]
    assert rewards == sorted(rewards) and rewards[1] > rewards[0] + 0.1
    assert rewards[-1] < 0.75 * (0.9 + 0.2) - 0.25 < rewards[-1] + 0.01


@pytest.mark.parametrize("space", SPACES)
def test_known_to_pay_repeated_steps_of_grpo_ps_without_bound(space):
    paid = growth(METHODS["grpo_ps"], space)
    assert paid == sorted(paid) and paid[-1] > 20
    right = outcome_of(METHODS["grpo_ps"], RIGHT_ROW, None, space).advantage
    assert paid[2] > right / 2, "four copies bring a wrong answer near the right one"


def test_minform_pays_for_length_where_the_others_rate_is_negative():
    costs, pays = (growth(METHODS["grpo_minform"], space) for space in SPACES)
    assert costs == sorted(costs, reverse=True) and costs[-1] < -10
    assert pays == sorted(pays) and pays[-1] > 5


@pytest.mark.parametrize("name", ["grpo", "grpo_ps", "grpo_delta", "papo", "gdpo", "rloo", "opo", "remax"])
def test_writing_nothing_does_not_pay_where_scores_are_probabilities(name):
    assert change(METHODS[name], NOTHING).advantage <= TINY


@pytest.mark.parametrize("name", ["grpo", "rloo", "opo", "remax", "grpo_minform", "grpo, aggregation=min"])
def test_known_to_pay_writing_nothing_instead_of_a_wrong_answer_where_scores_are_signed(name):
    assert change(METHODS[name], NOTHING, "signed").advantage > 0.1


@pytest.mark.parametrize("space", SPACES)
def test_merged_steps_do_not_pay_a_mean_and_escape_from_clip_alone(space):
    for name in ("grpo", "rloo", "opo", "gdpo", "grpo_ps", "papo"):
        assert change(METHODS[name], MERGE_RIGHT, space).advantage <= TINY
        assert change(METHODS[name], MERGE_WRONG, space).advantage <= TINY
    assert change(METHODS["grpo_delta, clip only"], MERGE_WRONG, space).advantage > 0.5


@pytest.mark.parametrize("space", SPACES)
def test_the_filter_takes_the_hacked_right_answer_out(space):
    method = METHODS[FILTERED]
    assert not math.isnan(outcome_of(method, RIGHT_ROW, None, space).advantage)
    for hack in (MERGE_RIGHT, DELETE):
        assert math.isnan(outcome_of(method, RIGHT_ROW, HACKS[hack][1], space).advantage)
    assert change(method, REPEAT_RIGHT, space).advantage == 0


def test_the_page_holds_these_tables():
    text = DOCUMENT.read_text(encoding="utf-8")
    assert tables() in text
    assert with_tables(text) == text, "run: python -m tests.helpers.hacks"
