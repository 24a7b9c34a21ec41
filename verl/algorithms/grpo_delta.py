# SPDX-License-Identifier: Apache-2.0
"""Clip and Delta: step rewards whose sum is bounded, however many steps there are. Knows no scorer."""

from __future__ import annotations

import torch

from verl.algorithms.inputs import AdvantageInputs
from verl.algorithms.masked import normalise_in_groups, sums_to_the_right
from verl.algorithms.registry import AdvantageEstimator, register_adv_est
from verl.algorithms.steps import STEP_COLUMNS, normalised_outcomes, own_step, process_weights, step_columns


@register_adv_est(AdvantageEstimator.GRPO_DELTA, columns=STEP_COLUMNS)
def grpo_delta(inputs: AdvantageInputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Give each step the refined reward still to come, normalised over all steps of the group.

        clip     c_k = min(s_k - eta, 0)        (off: c_k = s_k)
        delta    r_k = c_k - c_{k+1}, the last step r_K = c_K        (off: r_k = c_k)
        F_k      = sum_{j >= k} r_j             with delta F_k = c_k: it telescopes
        z_{n,k}  = (F_{n,k} - mean F) / (std F + epsilon)            over all steps of all responses of the group
        A[n, t]  = beta * z_{n,k(t)} + (1 - beta) * norm_G(r_out_n)  k(t): the step the token belongs to

    The sums F are normalised and not, as in `grpo_ps`, the single rewards: taking the group's mean off every reward
    would add to each sum a term that grows with the number of steps to come, which is what Clip and Delta remove.

    What has no score:
        - A response without steps (empty) adds nothing to F and has process part 0.
        - A group in which any response is unscored gets norm_G(r_out) alone, with full weight.
        - std F < epsilon, or fewer than two steps in the group: z = 0.
        - Tokens after the last step's end (EOS) have process part 0.

    Args:
        inputs: Reads `step_scores`, `step_ends`, `step_mask`, `is_scored`, `rule_scores`, `response_mask`,
            `group_index`, `beta`, `norm_adv_by_std` (False centres only, both parts), `epsilon`, `options.delta_clip`,
            `options.delta_delta`, `options.delta_eta`. `token_level_rewards`, the trajectory score and its weight
            alpha are not read.

    Returns:
        advantages [S, R] float32, 0 outside the mask;
        returns [S, R] float32, beta * F_{n,k(t)} + (1 - beta) * r_out_n.

    Raises:
        ValueError: A column it reads is missing.

    Source:
        Gao et al., arXiv 2410.15115; with both, clip comes first. The paper runs PPO with a critic; normalising in
        the group is ours, and so are the weights. Its delta leaves out the reward of the final step, where the
        success reward stands; here the last step is scored like the others.
    """
    scores, ends, step_mask, outcome = step_columns(inputs)
    mask, options = inputs.response_mask.bool(), inputs.options
    refined = (scores.double() - options.delta_eta).clamp(max=0) if options.delta_clip else scores.double()
    refined = torch.where(step_mask, refined, torch.zeros_like(refined))
    sums = (refined if options.delta_delta else sums_to_the_right(refined)).float()
    step_groups = inputs.group_index[:, None].expand_as(step_mask)
    z = normalise_in_groups(
        sums.reshape(-1), step_groups.reshape(-1), step_mask.reshape(-1), inputs.norm_adv_by_std, inputs.epsilon
    ).reshape(sums.shape)
    beta = process_weights(inputs)[:, None]
    advantages = beta * own_step(z, ends, step_mask, mask.shape[1]) + (1 - beta) * normalised_outcomes(inputs)[:, None]
    returns = beta * own_step(sums, ends, step_mask, mask.shape[1]) + (1 - beta) * outcome[:, None]
    return advantages * mask, returns * mask
