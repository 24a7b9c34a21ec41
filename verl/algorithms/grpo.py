# SPDX-License-Identifier: Apache-2.0
"""GRPO with outcome supervision, and Dr.GRPO as its variant without the division. Knows no step scores."""

from __future__ import annotations

import torch

from verl.algorithms.inputs import AdvantageInputs
from verl.algorithms.masked import masked_sum, normalise_in_groups
from verl.algorithms.registry import AdvantageEstimator, register_adv_est


@register_adv_est(AdvantageEstimator.GRPO, columns=("token_level_rewards",))
def grpo_outcome(inputs: AdvantageInputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Compare each response's reward with those of its group.

        r_n = sum_t token_level_rewards[n, t]        A[n, t] = (r_n - mean_G r) / (std_G r + epsilon)   on every token

    With the dense row of `verl.rewards.credit`, r_n is Eq. 12 of the ReasonFlux-PRM paper under every aggregation.
    `norm_adv_by_std=False` leaves out the division: Dr.GRPO.

    Args:
        inputs: Reads `token_level_rewards`, `response_mask`, `group_index`, `norm_adv_by_std`, `epsilon`. The order of
            rows does not matter; groups may differ in size.

    Returns:
        advantages [S, R] float32, 0 outside the mask and in a group whose deviation is below `epsilon`;
        returns [S, R] float32, r_n on every token of the mask (not normalised).

    Source:
        DeepSeekMath, arXiv 2402.03300, section 4.1.2; Dr.GRPO: arXiv 2503.20783.
        The papers leave open: the deviation takes n - 1. A group of one has no baseline and gets 0 (verl hands the raw
        reward through there, which turns a lone response into plain REINFORCE without a baseline).
    """
    mask = inputs.response_mask.bool()
    rewards = masked_sum(inputs.token_level_rewards.float(), mask, dim=-1)
    everyone = torch.ones_like(mask[:, 0])
    scaled = normalise_in_groups(rewards, inputs.group_index, everyone, inputs.norm_adv_by_std, inputs.epsilon)
    return scaled[:, None] * mask, rewards[:, None] * mask
