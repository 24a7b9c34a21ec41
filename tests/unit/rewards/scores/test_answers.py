# SPDX-License-Identifier: Apache-2.0
import time

import pytest

from verl.rewards.scores.answers import MAX_ANSWER_CHARS, last_answer_line, last_boxed, plain_answer


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"so \boxed{34}", "34"),
        (r"\boxed{1} then \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\fbox{7}", "7"),
        (r"\boxed {7}", "7"),
        (r"\boxed{\boxed{3}}", "3"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{5} and cut off \boxed{12", "5"),
        (r"\boxed 9 is it", "9"),
        (r"\\boxed{4}", None),  # a line break, then the word
        ("no box", None),
        (r"\boxed{", None),
        ("}}} \\boxed{8}", "8"),
    ],
)
def test_last_boxed(text, content):
    assert last_boxed(text) == content


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Steps.\nAnswer: 34", "34"),
        ("Answer: 1\nNo.\nAnswer: 2\n", "2"),
        ("**Answer:** 34", "34"),
        ("**Answer**: 34", "34"),
        ("answer : 34 apples\nmore", "34 apples"),
        ("Final Answer\uff1a34", "34"),
        ("Answer:\n\n34", "34"),
        ("Answer:\n$$\n34\n$$\nDone", "$$\n34\n$$"),
        ("Answer:\n\\[\n34\n\\]", "\\[\n34\n\\]"),
        ("The answer is 34", None),
        ("Answers: 34", None),
        ("Answer:", None),
        ("Answer: \n \n", None),
        ("", None),
    ],
)
def test_last_answer_line(text, answer):
    assert last_answer_line(text) == answer


@pytest.mark.parametrize(
    ("answer", "plain"),
    [
        (r"$x = \boxed{1{,}234}$.", "1234"),
        ("**34**", "34"),
        ("`34`", "34"),
        ("$34", "34"),
        (r"\$34", "34"),
        (r"\(34\)", "34"),
        (r"34^\circ", "34"),
        ("34 degrees", "34"),
        (r"34 \text{ cm}^2", "34"),
        ("1,234,567", "1234567"),
        ("(0,100)", "(0,100)"),
        ("1,23", "1,23"),
        ("34.", "34"),
        ("34.00", "34"),
        ("34.10", "34.10"),
        ("\u22123", "-3"),
        ("5!", "5!"),
        ("3 4", "3 4"),
        ("16m", "16m"),
        (r"\dfrac{1}{2}", r"\frac{1}{2}"),
        ("x > 33 = y", "x>33=y"),
        ("The sum is $34$ in all", "34"),
    ],
)
def test_plain_answer(answer, plain):
    assert plain_answer(answer) == plain


def test_plain_answer_is_bounded():
    assert len(plain_answer("7" * 100_000)) == MAX_ANSWER_CHARS


@pytest.mark.parametrize("unit", ["\\boxed{", "{", "}", "Answer:", "Answer" + " " * 50, "$", "\\(", "1,000", "\\text{"])
def test_a_hundred_thousand_characters_are_no_burden(unit):
    text = unit * (100_000 // len(unit))
    start = time.process_time()
    last_boxed(text)
    last_answer_line(text)
    plain_answer(text)
    # Linear work takes milliseconds here; quadratic work would take minutes.
    assert time.process_time() - start < 5
