# SPDX-License-Identifier: Apache-2.0
"""OPO: the baseline of least variance when a longer response has a larger gradient. Knows no step scores."""

from __future__ import annotations

import torch

from verl.algorithms.inputs import AdvantageInputs
from verl.algorithms.masked import masked_sum, weighted_group_means
from verl.algorithms.registry import AdvantageEstimator, register_adv_est


@register_adv_est(AdvantageEstimator.OPO, columns=("token_level_rewards",))
def opo(inputs: AdvantageInputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Compare each response's reward with its group's mean, longer responses counting more.

        r_n = sum_t token_level_rewards[n, t]          l_n = tokens of response n
        b   = sum_G l_n r_n / sum_G l_n                A[n, t] = r_n - b

    Args:
        inputs: Reads `token_level_rewards`, `response_mask`, `group_index`. Nothing is divided by a deviation.

    Returns:
        advantages [S, R] float32, 0 outside the mask and in a group of one (its baseline is its own reward);
        returns [S, R] float32, r_n on every token of the mask.

    Source:
        OPO, arXiv 2505.23585: the optimal baseline weighs rewards by squared gradient norms, here taken to be
        proportional to the length. The response itself is part of its baseline, as in the paper. The paper is
        strictly on-policy (one update per batch) and has no KL or entropy term; nothing here enforces that.
    """
    mask = inputs.response_mask.bool()
    rewards = masked_sum(inputs.token_level_rewards.float(), mask, dim=-1)
    baseline = weighted_group_means(rewards, mask.sum(-1), inputs.group_index)
    return (rewards.double() - baseline).float()[:, None] * mask, rewards[:, None] * mask
