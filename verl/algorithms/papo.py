# SPDX-License-Identifier: Apache-2.0
"""PAPO: the outcome compares all responses, the process only the correct ones. Knows no scorer."""

from __future__ import annotations

import torch

from verl.algorithms.inputs import AdvantageInputs
from verl.algorithms.masked import normalise_in_groups
from verl.algorithms.registry import AdvantageEstimator, register_adv_est
from verl.algorithms.steps import STEP_COLUMNS, mean_step_scores, normalised_outcomes, process_weights, step_columns


@register_adv_est(AdvantageEstimator.PAPO, columns=(*STEP_COLUMNS, "is_correct"))
def papo(inputs: AdvantageInputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalise the outcome over the group and the process reward over the group's correct responses.

        q_n        = mean_k s_{n,k}                                         (0 without steps)
        P_n        = (q_n - mean_C q) / (std_C q + epsilon)   if n is correct, C the correct responses of the group
                   = 0                                        if n is wrong, |C| < 2 or std_C q < epsilon
        A[n, t]    = beta * P_n + (1 - beta) * norm_G(r_out_n)              on every token

    The process terms of a group sum to 0 over its correct responses: good style cannot pay for a wrong answer.

    What has no score: a group in which any response is unscored gets norm_G(r_out) alone, with full weight. A group
    of one gets 0.

    Args:
        inputs: Reads `step_scores`, `step_ends`, `step_mask`, `is_scored`, `is_correct`, `rule_scores`,
            `response_mask`, `group_index`, `beta`, `norm_adv_by_std` (False centres only, both parts), `epsilon`.
            `token_level_rewards`, the trajectory score and its weight alpha are not read.

    Returns:
        advantages [S, R] float32, 0 outside the mask;
        returns [S, R] float32, beta * q_n (correct responses only) + (1 - beta) * r_out_n on every token.

    Raises:
        ValueError: A column it reads is missing.

    Source:
        PAPO, arXiv 2603.26535: A = A_out + lambda * A_proc with lambda 1. Ours: the weights 1 - beta and beta, so
        lambda = beta / (1 - beta) and the paper's blend is beta 0.5 (at half the scale); a PRM's mean step score
        where the paper has a judge's rubric; both deviations take n - 1.
    """
    inputs.require("is_correct")
    assert inputs.is_correct is not None
    scores, _, step_mask, outcome = step_columns(inputs)
    mask, is_correct = inputs.response_mask.bool(), inputs.is_correct.bool()
    quality = mean_step_scores(scores, step_mask)
    process = normalise_in_groups(quality, inputs.group_index, is_correct, inputs.norm_adv_by_std, inputs.epsilon)
    beta = process_weights(inputs)
    advantages = beta * process + (1 - beta) * normalised_outcomes(inputs)
    returns = beta * quality * is_correct + (1 - beta) * outcome
    return advantages[:, None] * mask, returns[:, None] * mask
