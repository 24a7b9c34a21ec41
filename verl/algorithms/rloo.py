# SPDX-License-Identifier: Apache-2.0
"""REINFORCE with a leave-one-out baseline. Knows no step scores."""

from __future__ import annotations

import torch

from verl.algorithms.inputs import AdvantageInputs
from verl.algorithms.masked import masked_sum, minus_the_others
from verl.algorithms.registry import AdvantageEstimator, register_adv_est


@register_adv_est(AdvantageEstimator.RLOO, columns=("token_level_rewards",))
def rloo(inputs: AdvantageInputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Compare each response's reward with the mean of the other responses to the same prompt.

        r_n = sum_t token_level_rewards[n, t]        A[n, t] = r_n - mean of r_m over m != n in the group

    This is Dr.GRPO's r_n - mean_G r times G / (G - 1), and an unbiased baseline.

    Args:
        inputs: Reads `token_level_rewards`, `response_mask`, `group_index`. Nothing is divided by a deviation.

    Returns:
        advantages [S, R] float32, 0 outside the mask and in a group of one (no baseline);
        returns [S, R] float32, r_n on every token of the mask.

    Source:
        Ahmadian et al., arXiv 2402.14740; the estimator is Kool et al. 2019. The whole response is one action.
    """
    mask = inputs.response_mask.bool()
    rewards = masked_sum(inputs.token_level_rewards.float(), mask, dim=-1)
    return minus_the_others(rewards, inputs.group_index)[:, None] * mask, rewards[:, None] * mask
