# SPDX-License-Identifier: Apache-2.0
"""REINFORCE++ and its variant with a group baseline: advantages on the scale of the batch. Knows no step scores."""

from __future__ import annotations

import torch

from verl.algorithms.inputs import AdvantageInputs
from verl.algorithms.masked import masked_sum, masked_whiten, normalise_in_groups, sums_to_the_right
from verl.algorithms.registry import AdvantageEstimator, register_adv_est


@register_adv_est(AdvantageEstimator.REINFORCE_PLUS_PLUS, columns=("token_level_rewards",))
def reinforce_plus_plus(inputs: AdvantageInputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalise each token's reward to come over all tokens of the batch.

        G[n, t] = sum_{u >= t} token_level_rewards[n, u]        A[n, t] = (G[n, t] - mean G) / std G

    Mean and deviation are those of all response tokens of the batch, so no group is needed and one response per
    prompt is enough. With one reward at the end, G is that reward on every token.

    Args:
        inputs: Reads `token_level_rewards` (which may hold a KL penalty per token: the paper's setting),
            `response_mask`, `epsilon`. `norm_adv_by_std` is not read: the deviation is what the method is about.

    Returns:
        advantages [S, R] float32, 0 outside the mask, and everywhere if the deviation is below `epsilon`;
        returns [S, R] float32, G.

    Source:
        REINFORCE++, arXiv 2501.03262, with discount 1. The deviation takes n - 1.
    """
    mask = inputs.response_mask.bool()
    rewards = torch.where(
        mask, inputs.token_level_rewards.float(), torch.zeros_like(inputs.token_level_rewards.float())
    )
    to_come = sums_to_the_right(rewards.double()).float() * mask
    return masked_whiten(to_come, mask, inputs.epsilon), to_come


@register_adv_est(AdvantageEstimator.REINFORCE_PLUS_PLUS_BASELINE, columns=("token_level_rewards",))
def reinforce_plus_plus_baseline(inputs: AdvantageInputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Take the group's mean off each response's reward, then normalise over all tokens of the batch.

        r_n  = sum_t token_level_rewards[n, t]          d_n = r_n - mean_G r
        A[n, t] = (d_n - mean d) / std d                mean and deviation of d over all response tokens of the batch

    Groups whose rewards are equal have d = 0 and pull nobody, but the batch's mean over tokens is not exactly 0 where
    lengths differ: such a group then gets the small advantage -mean d / std d.

    Args:
        inputs: Reads `token_level_rewards`, `response_mask`, `group_index`, `epsilon`. `norm_adv_by_std` is not read.

    Returns:
        advantages [S, R] float32, 0 outside the mask, and everywhere if the deviation is below `epsilon`;
        returns [S, R] float32, d_n on every token of the mask.

    Source:
        REINFORCE++-baseline in arXiv 2501.03262. A group of one has no baseline: d = 0.
    """
    mask = inputs.response_mask.bool()
    rewards = masked_sum(inputs.token_level_rewards.float(), mask, dim=-1)
    everyone = torch.ones_like(mask[:, 0])
    centred = normalise_in_groups(rewards, inputs.group_index, everyone, False, inputs.epsilon)[:, None] * mask
    return masked_whiten(centred, mask, inputs.epsilon), centred
