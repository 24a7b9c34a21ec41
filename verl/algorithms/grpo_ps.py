# SPDX-License-Identifier: Apache-2.0
"""GRPO with process supervision: each reasoning step is compared with all steps of its group. Knows no scorer."""

from __future__ import annotations

import torch

from verl.algorithms.inputs import AdvantageInputs
from verl.algorithms.masked import normalise_in_groups, sums_to_the_right
from verl.algorithms.registry import AdvantageEstimator, register_adv_est


@register_adv_est(AdvantageEstimator.GRPO_PS, columns=("step_scores", "step_ends", "step_mask", "rule_scores"))
def grpo_process(inputs: AdvantageInputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Credit each token with the normalised scores of the reasoning steps that end at or after it.

        R          = all step scores s_{n,k} of all responses n of the group, one flat set
        z_{n,k}    = (s_{n,k} - mean R) / (std R + epsilon)
        A[n, t]    = beta * sum_{k: end_{n,k} >= t} z_{n,k} + (1 - beta) * norm_G(r_out_n)

    What has no score:
        - A response without steps (empty) adds nothing to R and has process part 0; its outcome part stays.
        - A group in which any response is unscored (`is_scored` false) uses no step scores at all and full outcome
          weight, A = norm_G(r_out): one group never mixes two scales. This is `on_error=rule_only`.
        - std R < epsilon, or R with fewer than two scores: z = 0; the outcome part stays. Likewise for r_out.
        - Tokens after the last step's end (EOS) have process part 0.

    Args:
        inputs: Reads `step_scores`, `step_ends`, `step_mask`, `is_scored`, `rule_scores`, `response_mask`,
            `group_index`, `beta`, `norm_adv_by_std` (False centres only, both parts), `epsilon`. `token_level_rewards`
            is not read: a KL penalty in the reward would be lost, so the trainer refuses it. The trajectory score and
            its weight alpha are not used.

    Returns:
        advantages [S, R] float32, 0 outside the mask;
        returns [S, R] float32, the same sums with the raw scores: beta * sum s_{n,k} + (1 - beta) * r_out_n.

    Raises:
        ValueError: A column it reads is missing.

    Source:
        DeepSeekMath, arXiv 2402.03300, section 4.1.3. The outcome part and its weight are ours, after Eq. 12 of
        ReasonFlux-PRM (arXiv 2506.18896): the paper's process supervision has the step scores alone (beta = 1).
    """
    inputs.require("step_scores", "step_ends", "step_mask", "rule_scores")
    assert inputs.step_scores is not None and inputs.step_mask is not None and inputs.rule_scores is not None
    mask, groups = inputs.response_mask.bool(), inputs.group_index
    step_mask = inputs.step_mask.bool()
    step_groups = groups[:, None].expand_as(step_mask)
    scores = inputs.step_scores.float()
    by_std, epsilon = inputs.norm_adv_by_std, inputs.epsilon
    z = normalise_in_groups(
        scores.reshape(-1), step_groups.reshape(-1), step_mask.reshape(-1), by_std, epsilon
    ).reshape(scores.shape)
    outcome = inputs.rule_scores.float()
    everyone = torch.ones_like(groups, dtype=torch.bool)
    outcome_scaled = normalise_in_groups(outcome, groups, everyone, by_std, epsilon)
    beta = inputs.beta * _groups_fully_scored(inputs).float()[:, None]
    advantages = beta * _to_tokens(z, step_mask, inputs) + (1 - beta) * outcome_scaled[:, None]
    returns = beta * _to_tokens(scores, step_mask, inputs) + (1 - beta) * outcome[:, None]
    return advantages * mask, returns * mask


def _groups_fully_scored(inputs: AdvantageInputs) -> torch.Tensor:
    """Return [S] bool: whether every response of the row's group was scored."""
    if inputs.is_scored is None:
        return torch.ones_like(inputs.group_index, dtype=torch.bool)
    return ~torch.isin(inputs.group_index, inputs.group_index[~inputs.is_scored.bool()])


def _to_tokens(step_values: torch.Tensor, step_mask: torch.Tensor, inputs: AdvantageInputs) -> torch.Tensor:
    """Return [S, R]: at each token, the sum of the values of the steps that end there or later."""
    assert inputs.step_ends is not None
    values = torch.where(step_mask, step_values, torch.zeros_like(step_values))
    ends = torch.where(step_mask, inputs.step_ends, torch.zeros_like(inputs.step_ends))
    placed = values.new_zeros(inputs.response_mask.shape).scatter_add(1, ends, values)
    return sums_to_the_right(placed)
