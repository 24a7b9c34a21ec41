# SPDX-License-Identifier: Apache-2.0
r"""The `\boxed{}` convention of MATH and MATH-500 (arXiv 2103.03874): the last complete box is the answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from verl.rewards.scores.answers import last_answer_line, last_boxed
from verl.rewards.scores.dapo import grade
from verl.rewards.types import RuleVerdict


def score_boxed(response: str, ground_truth: str, extra_info: Mapping[str, Any]) -> RuleVerdict:
    r"""Grade the last `\boxed{}`.

    Args:
        response: The whole response text.
        ground_truth: The true answer in LaTeX.
        extra_info: Not read.

    Returns:
        +1 and correct, or -1; `predicted` is None without a complete box.
    """
    return grade(last_boxed(response), ground_truth)


def score_boxed_or_line(response: str, ground_truth: str, extra_info: Mapping[str, Any]) -> RuleVerdict:
    r"""Grade the last `\boxed{}`, or the last `Answer:` line where no box is complete.

    For test sets (AIME, AMC) that circulate with either instruction.

    Args:
        response: The whole response text.
        ground_truth: The true answer.
        extra_info: Not read.

    Returns:
        +1 and correct, or -1; `predicted` is None where neither is found.
    """
    boxed = last_boxed(response)
    return grade(last_answer_line(response) if boxed is None else boxed, ground_truth)
