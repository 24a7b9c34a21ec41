# SPDX-License-Identifier: Apache-2.0
import json

import pytest

from verl.rewards.scores.boxed import score_boxed, score_boxed_or_line
from verl.rewards.scores.dapo import score_dapo
from verl.rewards.scores.gsm8k import score_gsm8k
from verl.rewards.types import RuleVerdict


def test_dapo_says_plus_or_minus_one():
    assert score_dapo("So.\nAnswer: $34$", "34", {}) == RuleVerdict(1.0, True, "34")
    assert score_dapo("So.\nAnswer: 35", "34", {}) == RuleVerdict(-1.0, False, "35")
    assert score_dapo(r"So \boxed{34}", "34", {}) == RuleVerdict(-1.0, False, None)


def test_dapo_on_every_row_of_the_sample(shared_data):
    lines = (shared_data / "math" / "dapo_math_sample.jsonl").read_text().splitlines()
    truths = [json.loads(line)["reward_model"]["ground_truth"] for line in lines]
    for truth, other in zip(truths, truths[1:] + truths[:1], strict=True):
        for form in ("Answer: {}", "Answer: ${}$", "**Answer:** {}.", "Answer: \\boxed{{{}}}", "Answer: \\({}\\)"):
            verdict = score_dapo("Thus\n\n" + form.format(truth), truth, {})
            assert (verdict.is_correct, verdict.predicted) == (True, truth)
            assert score_dapo("Thus\n\n" + form.format(other), truth, {}).is_correct == (truth == other)


def test_boxed_agrees_with_recorded_grades_of_real_responses(shared_data):
    rows = [json.loads(line) for line in (shared_data / "math" / "math_responses_50x8.jsonl").read_text().splitlines()]
    differing = set()
    for row in rows:
        for response, score in zip(row["response"], row["score"], strict=True):
            if score_boxed(response, row["answer"], {}).is_correct != score:
                differing.add(row["answer"])
    # The recorded grader held "4:30" wrong for "4:30 p.m."; we do not.
    assert differing == {r"\text{4:30 p.m.}"}


def test_boxed_or_line_prefers_the_box():
    assert score_boxed_or_line(r"\boxed{34} Answer: 35", "34", {}).is_correct
    assert score_boxed_or_line("Answer: 34", "34", {}).is_correct
    assert score_boxed_or_line("34", "34", {}).predicted is None


@pytest.mark.parametrize(
    ("response", "predicted"),
    [
        ("#### 18", "18"),
        ("9 + 9\n#### $1,018.00", "1018"),
        ("#### 17\n#### 18", "18"),
        ("#### none", None),
        (r"it is \boxed{18}. 7", "18"),
        ("She has 3 and then 18.", "18"),
        ("-5", "-5"),
        ("no number", None),
    ],
)
def test_gsm8k_finds(response, predicted):
    assert score_gsm8k(response, "18", {}).predicted == predicted


def test_gsm8k_grades_its_own_solutions(shared_data):
    rows = [json.loads(line) for line in (shared_data / "math" / "gsm8k_400.jsonl").read_text().splitlines()]
    assert all(score_gsm8k(row["answer"], row["answer"], {}).score == 1.0 for row in rows)
    assert not score_gsm8k(rows[0]["answer"], rows[1]["answer"], {}).is_correct
