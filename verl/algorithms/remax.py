# SPDX-License-Identifier: Apache-2.0
"""ReMax: the baseline is what the greedy response to the same prompt got. Knows no step scores."""

from __future__ import annotations

import torch

from verl.algorithms.inputs import AdvantageInputs
from verl.algorithms.masked import masked_sum
from verl.algorithms.registry import AdvantageEstimator, register_adv_est


@register_adv_est(AdvantageEstimator.REMAX, columns=("token_level_rewards", "reward_baselines"))
def remax(inputs: AdvantageInputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Compare each response's reward with that of the greedy response to its prompt.

        r_n = sum_t token_level_rewards[n, t]        A[n, t] = r_n - reward_baselines[n]

    One response per prompt is enough: groups do not matter.

    Args:
        inputs: Reads `token_level_rewards`, `response_mask`, `reward_baselines`. Nothing is divided by a deviation.

    Returns:
        advantages [S, R] float32, 0 outside the mask;
        returns [S, R] float32, r_n on every token of the mask.

    Raises:
        ValueError: `reward_baselines` is missing.

    Source:
        ReMax, arXiv 2310.10505. The whole response is one action; with rewards on single tokens (dense scores, KL)
        the sum counts on every token, as the paper's reward does, and not what is still to come: the greedy baseline
        is one number for the whole response. A KL penalty in the reward is part of r_n and not of the baseline.
    """
    inputs.require("reward_baselines")
    assert inputs.reward_baselines is not None
    mask = inputs.response_mask.bool()
    rewards = masked_sum(inputs.token_level_rewards.float(), mask, dim=-1)
    return (rewards - inputs.reward_baselines.float())[:, None] * mask, rewards[:, None] * mask
