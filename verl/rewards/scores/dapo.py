# SPDX-License-Identifier: Apache-2.0
"""The DAPO convention: the last line of the response is `Answer: VALUE`.

Source of the convention: the data set BytedTsinghua-SIA/DAPO-Math-17k and DAPO (arXiv 2503.14476), section 2.4: the
outcome is +1 when the answer means the truth, else -1. We read the whole response (not its last characters), accept a
box, math delimiters or bold around the value, and compare values, not spellings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from verl.rewards.scores.answers import last_answer_line, plain_answer
from verl.rewards.scores.equivalence import is_equivalent
from verl.rewards.types import RuleVerdict


def score_dapo(response: str, ground_truth: str, extra_info: Mapping[str, Any]) -> RuleVerdict:
    """Grade the last `Answer:` line.

    Args:
        response: The whole response text.
        ground_truth: The true answer; DAPO's are integers, anything math-verify reads is accepted.
        extra_info: Not read.

    Returns:
        +1 and correct, or -1; `predicted` is the plain form of the answer, None without an `Answer:` line (a box alone
        does not count: the prompt asks for the line).
    """
    return grade(last_answer_line(response), ground_truth)


def grade(answer: str | None, ground_truth: str) -> RuleVerdict:
    """Turn a found answer into a verdict of +1 or -1.

    Args:
        answer: The answer as written, None where none was found.
        ground_truth: The true answer.

    Returns:
        The verdict.
    """
    is_correct = answer is not None and is_equivalent(answer, ground_truth)
    predicted = None if answer is None else plain_answer(answer)
    return RuleVerdict(score=1.0 if is_correct else -1.0, is_correct=is_correct, predicted=predicted)
