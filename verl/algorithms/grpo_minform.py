# SPDX-License-Identifier: Apache-2.0
"""PURE: a reasoning chain is worth as much as its worst step still to come. Knows no scorer."""

from __future__ import annotations

import torch

from verl.algorithms.inputs import AdvantageInputs
from verl.algorithms.masked import means_of_the_others, minus_the_others
from verl.algorithms.registry import AdvantageEstimator, register_adv_est
from verl.algorithms.steps import STEP_COLUMNS, later_steps, process_weights, step_columns


@register_adv_est(AdvantageEstimator.GRPO_MINFORM, columns=STEP_COLUMNS)
def grpo_minform(inputs: AdvantageInputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Move the step scores' weight to the smallest one, then give each step what is left to come, less a baseline.

        w_{n,k}    = softmax_k( -s_{n,k} / T )          r'_{n,k} = w_{n,k} s_{n,k}      sum_k r' -> min_k s as T -> 0
        rate_n     = sum_k r'_{n,k} / tokens of n's steps
        b_n        = mean of rate_m over the other responses m of the group
        A[n, t]    = beta * sum_{k: end_{n,k} >= t} (r'_{n,k} - b_n * tokens of step k)
                     + (1 - beta) * (r_out_n - mean of r_out over the others)

    T is `options.minform_temperature`. The baseline is paid per token and not per step: a response cannot beat it by
    cutting the same text into more steps.

    What has no score:
        - A response without steps (empty) has rate 0, which counts in the others' baseline, and process part 0.
        - A group in which any response is unscored gets the outcome part alone, with full weight.
        - A group of one has no baseline: advantage 0.
        - Tokens after the last step's end (EOS) have process part 0 and count for no rate.

    Args:
        inputs: Reads `step_scores`, `step_ends`, `step_mask`, `is_scored`, `rule_scores`, `response_mask`,
            `group_index`, `beta`, `options.minform_temperature`. Nothing is divided by a deviation, so
            `norm_adv_by_std` is not read; nor are `token_level_rewards`, the trajectory score and its weight alpha.
            The paper's scores are p(right) - p(wrong), `score_space=signed`, where a doubtful step is worth 0 and a
            wrong one costs; scores of another space are taken as they are.

    Returns:
        advantages [S, R] float32, 0 outside the mask;
        returns [S, R] float32, the same sums without baselines: beta * sum r'_{n,k} + (1 - beta) * r_out_n.

    Raises:
        ValueError: A column it reads is missing.

    Source:
        PURE, arXiv 2504.15275: the weights, the sum of what is to come, and leave-one-out baselines for process and
        verifiable reward. The paper leaves open, and we read: the others' rate is a mean of ratios (each response
        counts the same); a step's tokens reach from the one after the step before to its end; all tokens of a step
        share its advantage. Ours: the weights beta and 1 - beta (the paper adds both with weight 1, that is beta 0.5
        and half the scale), no whitening over the batch, and r_out as configured (the paper's is 0 or -1; a baseline
        makes the shift irrelevant).
    """
    scores, ends, step_mask, outcome = step_columns(inputs)
    mask, width = inputs.response_mask.bool(), inputs.response_mask.shape[1]
    rewards = _towards_the_minimum(scores.double(), step_mask, inputs.options.minform_temperature)
    tokens = _tokens_of_steps(ends, step_mask)
    rates = rewards.sum(-1) / tokens.sum(-1).clamp(min=1)
    baseline, has_others = means_of_the_others(rates, inputs.group_index)
    compared = (rewards - baseline[:, None] * tokens) * has_others[:, None]
    beta = process_weights(inputs)[:, None]
    outcome_part = minus_the_others(outcome, inputs.group_index)[:, None]
    advantages = beta * later_steps(compared, ends, step_mask, width).float() + (1 - beta) * outcome_part
    returns = beta * later_steps(rewards, ends, step_mask, width).float() + (1 - beta) * outcome[:, None]
    return advantages * mask, returns * mask


def _towards_the_minimum(scores: torch.Tensor, step_mask: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return [S, K]: scores times their softmax(-s / T) weights within the row; 0 where there is no step."""
    lowest = torch.where(step_mask, scores, torch.inf).amin(-1, keepdim=True)
    raised = torch.where(step_mask, (lowest - scores) / temperature, -torch.inf)
    weights = torch.where(step_mask, raised.exp(), torch.zeros_like(scores))
    return scores * weights / weights.sum(-1, keepdim=True).clamp(min=1)


def _tokens_of_steps(ends: torch.Tensor, step_mask: torch.Tensor) -> torch.Tensor:
    """Return [S, K]: how many tokens each step has; 0 where there is no step."""
    before = torch.cat([torch.full_like(ends[:, :1], -1), ends[:, :-1]], dim=-1)
    return (ends - before) * step_mask
