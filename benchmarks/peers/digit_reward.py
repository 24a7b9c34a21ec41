# SPDX-License-Identifier: Apache-2.0
"""A rule reward that both sides of `grpo_step.py` call: the share of digits in a response. Imports nothing."""

from __future__ import annotations

from typing import Any


def compute_score(data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None) -> float:
    """Score one response.

    Args:
        data_source: Not read.
        solution_str: The response.
        ground_truth: Not read.
        extra_info: Not read.

    Returns:
        From 0 to 1.
    """
    del data_source, ground_truth, extra_info
    return sum(character.isdigit() for character in solution_str) / max(1, len(solution_str))
