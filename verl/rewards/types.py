# SPDX-License-Identifier: Apache-2.0
"""The values that pass between rollout, rule verifier, PRM scoring and credit assignment.

Plain data: no tensor, no process, no model. Knows nothing of how a score is made or where it is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

VerdictStatus = Literal["scored", "timeout", "error"]
PrmStatus = Literal["scored", "retried", "failed", "off"]


@dataclass(frozen=True)
class RewardInput:
    """One finished response with everything a scorer may read.

    Args:
        uid: Identity of the group (one prompt, its G responses).
        index: Place of this response within its group, 0 to G - 1.
        data_source: Name that selects the rule scorer.
        prompt: Chat messages of the prompt, each with `role` and `content`.
        response: Response text, special tokens left out.
        token_starts: [T] int64, index of each response token's first character in `response`; special tokens
            (such as EOS) get `len(response)`.
        num_tokens: T, the number of response tokens, EOS included.
        truncated: Whether generation ended at the length limit.
        ground_truth: The true answer, as text.
        extra_info: The data row's further fields.
    """

    uid: str
    index: int
    data_source: str
    prompt: list[dict[str, Any]]
    response: str
    token_starts: np.ndarray
    num_tokens: int
    truncated: bool
    ground_truth: str
    extra_info: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RuleVerdict:
    """What a rule scorer says of one response.

    Args:
        score: The scorer's own number; 0.0 when `status` is not `scored`, and then not to be trained on as a score.
        is_correct: Whether the answer is right; gates, accuracy and AUC read this.
        predicted: The answer found in the response, None where there is none.
        status: `scored`, `timeout` (the time limit ended the worker) or `error` (the function raised, or died).
        detail: Why, when `status` is not `scored`.
        metrics: Further numbers a custom function gave.
        step_scores: Scores of reasoning steps a custom function gave, None where it gave none.
        step_char_ends: For each of them, one past the step's last character; None where the steps are those that were
            shown to the function.
        says_predicted: Whether the scorer looks for `predicted` at all; a custom function without `pred` does not.
    """

    score: float
    is_correct: bool
    predicted: str | None = None
    status: VerdictStatus = "scored"
    detail: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    step_scores: tuple[float, ...] | None = None
    step_char_ends: tuple[int, ...] | None = None
    says_predicted: bool = True


@dataclass(frozen=True)
class ScoredResponse:
    """All that was found out about one response, ready for credit assignment.

    Args:
        uid: Identity of the group.
        index: Place within the group.
        verdict: The rule scorer's verdict.
        rule_score: r_out: the verdict after `rule_range`, or the custom function's own number.
        overlong_penalty: Length penalty, 0 or negative; added to `rule_score` by credit assignment.
        step_spans: Character spans (start, end) of the reasoning steps in the response.
        step_ends: [K] int64, index of each reasoning step's last token in the response.
        step_scores: [K] float32, PRM score of each reasoning step.
        traj_score: PRM score of the whole response.
        prm_status: `scored`, `retried` (scored after a retry), `failed` or `off`.
        num_repeated_steps: Reasoning steps that say what an earlier one of the same response said.
        flags: What was special: "empty", "one_step", "repeated", "truncated", "escaped", "windowed", ...
    """

    uid: str
    index: int
    verdict: RuleVerdict
    rule_score: float
    overlong_penalty: float = 0.0
    step_spans: tuple[tuple[int, int], ...] = ()
    step_ends: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    step_scores: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.float32))
    traj_score: float = 0.0
    prm_status: PrmStatus = "off"
    num_repeated_steps: int = 0
    flags: tuple[str, ...] = ()
