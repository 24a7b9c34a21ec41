# SPDX-License-Identifier: Apache-2.0
"""GRPO with process supervision: each reasoning step is compared with all steps of its group. Knows no scorer."""

from __future__ import annotations

import torch

from verl.algorithms.inputs import AdvantageInputs
from verl.algorithms.masked import normalise_in_groups
from verl.algorithms.registry import AdvantageEstimator, register_adv_est
from verl.algorithms.steps import STEP_COLUMNS, later_steps, normalised_outcomes, process_weights, step_columns


@register_adv_est(AdvantageEstimator.GRPO_PS, columns=STEP_COLUMNS)
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
    scores, ends, step_mask, outcome = step_columns(inputs)
    mask, width = inputs.response_mask.bool(), inputs.response_mask.shape[1]
    step_groups = inputs.group_index[:, None].expand_as(step_mask)
    z = normalise_in_groups(
        scores.reshape(-1), step_groups.reshape(-1), step_mask.reshape(-1), inputs.norm_adv_by_std, inputs.epsilon
    ).reshape(scores.shape)
    beta = process_weights(inputs)[:, None]
    scaled = normalised_outcomes(inputs)[:, None]
    advantages = beta * later_steps(z, ends, step_mask, width) + (1 - beta) * scaled
    returns = beta * later_steps(scores, ends, step_mask, width) + (1 - beta) * outcome[:, None]
    return advantages * mask, returns * mask
