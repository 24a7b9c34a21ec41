# SPDX-License-Identifier: Apache-2.0
import json
from fractions import Fraction

import pytest

from verl.rewards.scores.answers import MAX_ANSWER_CHARS
from verl.rewards.scores.equivalence import exact_value, is_equivalent


@pytest.mark.parametrize(
    ("plain", "value"),
    [
        ("34", Fraction(34)),
        ("-3", Fraction(-3)),
        ("007", Fraction(7)),
        ("0.5", Fraction(1, 2)),
        ("2/4", Fraction(1, 2)),
        (r"\frac{-1}{2}", Fraction(-1, 2)),
        (r"-\frac{1}{2}", Fraction(-1, 2)),
        (r"--\frac{1}{2}", None),
        (r"-\frac{-1}{2}", None),
        ("1/0", None),
        ("1e5", None),
        ("x", None),
        ("", None),
        ("9" * 201, None),
    ],
)
def test_exact_value(plain, value):
    assert exact_value(plain) == value


@pytest.mark.parametrize(
    ("answer", "truth"),
    [
        ("34", "34"),
        ("034", "34"),
        ("34.0", "34"),
        (r"\frac{68}{2}", "34"),
        ("0.5", r"\frac12"),
        (r"\sqrt{8}", r"2\sqrt{2}"),
        ("2^5+2", "34"),
        ("5!", "120"),
        ("(3,4)", "(3, 4)"),
        (r"\{1,2\}", r"\{2,1\}"),
        (r"x \in [1, 2)", "[1,2)"),
        (r"\text{even}", "even"),
        ("x^2 + 2x + 1", "(x+1)^2"),
    ],
)
def test_equal_meaning(answer, truth):
    assert is_equivalent(answer, truth)


@pytest.mark.parametrize(
    "answer",
    [
        "3",
        "-34",
        "34x",
        "34 or 35",
        "35 (or 34)",
        "34 (or 35)",
        "33 and 34",
        "3 4",
        "33, 34",
        "{33, 34}",
        "33;34",
        "x",
        "",
    ]
    + [
        "x > 33",
        "(33, 35)",
        r"34 \pm 1",
        "1" * (MAX_ANSWER_CHARS + 1),
        "0.34",
        "34/0",
        "9^9^9",
        "$",
        "{}",
        "=34=1",
    ],
)
def test_other_meaning_and_hedged_answers(answer):
    assert not is_equivalent(answer, "34")


def test_every_worked_math500_answer_means_itself_and_no_other(shared_data):
    lines = (shared_data / "math" / "math500_first250.jsonl").read_text().splitlines()
    answers = [json.loads(line)["answer"] for line in lines]
    assert all(is_equivalent(answer, answer) for answer in answers)
    distinct = sorted(set(answers))[:60]
    confused = [(one, two) for one, two in zip(distinct, distinct[1:], strict=False) if is_equivalent(one, two)]
    assert confused == [("120", r"120^\circ")]  # degrees are a unit
