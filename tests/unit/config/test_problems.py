# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from verl.config.problems import Problem, describe_choices, nearest_key, raise_all
from verl.utils.errors import UserError

KEYS = ["trainer.save_freq", "trainer.seed", "data.seed", "actor_rollout_ref.actor.optim.lr", "data.shuffle"]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("trainer.sav_freq", "trainer.save_freq"),
        ("data.sed", "data.seed"),
        ("data.lr", "actor_rollout_ref.actor.optim.lr"),
        ("trainer.shuffle", "data.shuffle"),
        ("quux.zzz", None),
    ],
)
def test_nearest_key(written: str, meant: str | None) -> None:
    assert nearest_key(written, KEYS) == meant


def test_one_problem_is_one_line() -> None:
    with pytest.raises(UserError) as caught:
        raise_all([Problem("a.b", 3, "must be a text", "Write a text")])
    assert str(caught.value) == "a.b=3: must be a text. Write a text."


def test_many_problems_are_numbered_and_shown_once() -> None:
    first, second = Problem("a", 1, "x", "y"), Problem("b", 2, "x", "Did you mean c?")
    with pytest.raises(UserError) as caught:
        raise_all([first, second, first])
    lines = str(caught.value).splitlines()
    assert lines[0] == "2 mistakes in the configuration:"
    assert lines[1:] == ["  1. a=1: x. y.", "  2. b=2: x. Did you mean c?"]


def test_no_problem_raises_nothing() -> None:
    raise_all([])


def test_choices_without_a_near_name_show_an_example() -> None:
    assert describe_choices("zzz", ["grpo", "grpo_ps"]) == ("allowed: grpo | grpo_ps", "Use one of them, e.g. 'grpo'")
