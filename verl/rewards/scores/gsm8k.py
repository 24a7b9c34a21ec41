# SPDX-License-Identifier: Apache-2.0
"""The GSM8K convention (arXiv 2110.14168): `#### NUMBER` ends the answer; without it, a box, else the last number."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from verl.rewards.scores.answers import last_boxed
from verl.rewards.scores.dapo import grade
from verl.rewards.types import RuleVerdict

_MARKED = re.compile(r"####[ \t]*([^\n]*)")
_NUMBER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?")


def score_gsm8k(response: str, ground_truth: str, extra_info: Mapping[str, Any]) -> RuleVerdict:
    """Grade what follows the last `####`; without one, the last box; without one, the last number.

    Args:
        response: The whole response text.
        ground_truth: The true number, or a worked solution that ends with `#### NUMBER`.
        extra_info: Not read.

    Returns:
        +1 and correct, or -1; `predicted` is None where the response holds no number.
    """
    truth = _MARKED.findall(ground_truth)
    return grade(_find(response), truth[-1].strip() if truth else ground_truth)


def _find(response: str) -> str | None:
    marked = _MARKED.findall(response)
    if marked:
        numbers = _NUMBER.findall(marked[-1])
        return numbers[0] if numbers else None
    boxed = last_boxed(response)
    if boxed is not None:
        return boxed
    numbers = _NUMBER.findall(response)
    return numbers[-1] if numbers else None
