# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl.trainer.ppo.val_metrics import JudgedResponse, accuracy_metrics, majority_is_correct


def group(answers: str, truth: str, uid: str = "u", source: str = "math") -> list[JudgedResponse]:
    """One response per character of `answers`; a dash is a response without an answer."""
    return [JudgedResponse(uid, source, a == truth, None if a == "-" else a) for a in answers]


@pytest.mark.parametrize(
    ("answers", "is_correct"),
    [
        ("112", True),
        ("122", False),
        ("12", True),  # a tie: the first seen wins
        ("21", False),
        ("--1", True),  # no answer is no vote
        ("---", False),
        ("", False),
    ],
)
def test_majority_by_hand(answers: str, is_correct: bool) -> None:
    assert majority_is_correct(group(answers, "1")) is is_correct


@given(answers=st.text("123-", max_size=8))
def test_majority_against_counting(answers: str) -> None:
    votes = Counter(answers.replace("-", ""))
    winners = [answer for answer, count in votes.items() if count == max(votes.values())]
    expected = bool(votes) and min(winners, key=answers.index) == "1"
    assert majority_is_correct(group(answers, "1")) is expected


def test_accuracies_by_hand() -> None:
    responses = [
        *group("112", "1", "a", "aime"),
        *group("233", "2", "b", "aime"),
        *group("444", "5", "c", "gsm8k"),
    ]
    metrics = accuracy_metrics(responses)
    assert metrics == {
        "val/aime/acc/mean@3": pytest.approx((2 / 3 + 1 / 3) / 2),
        "val/aime/acc/maj@3": 0.5,
        "val/aime/acc/pass@3": 1.0,
        "val/gsm8k/acc/mean@3": 0.0,
        "val/gsm8k/acc/maj@3": 0.0,
        "val/gsm8k/acc/pass@3": 0.0,
        "val/acc/mean@3": pytest.approx((2 / 3 + 1 / 3) / 3),
        "val/acc/maj@3": pytest.approx(1 / 3),
        "val/acc/pass@3": pytest.approx(2 / 3),
    }


def test_responses_of_a_prompt_need_not_stand_together() -> None:
    apart = [response for pair in zip(group("12", "1", "a"), group("34", "4", "b"), strict=True) for response in pair]
    assert accuracy_metrics(apart) == accuracy_metrics([*group("12", "1", "a"), *group("34", "4", "b")])


def test_prompts_count_alike_and_the_largest_group_names_the_metric() -> None:
    metrics = accuracy_metrics([*group("1111", "1", "a"), *group("2", "1", "b")])
    assert metrics["val/acc/mean@4"] == 0.5


def test_no_responses_no_metrics() -> None:
    assert accuracy_metrics([]) == {}
