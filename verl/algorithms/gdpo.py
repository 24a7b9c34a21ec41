# SPDX-License-Identifier: Apache-2.0
"""GDPO: outcome and process reward are normalised apart and added afterwards. Knows no scorer."""

from __future__ import annotations

import torch

from verl.algorithms.inputs import AdvantageInputs
from verl.algorithms.masked import normalise_in_groups
from verl.algorithms.registry import AdvantageEstimator, register_adv_est
from verl.algorithms.steps import STEP_COLUMNS, mean_step_scores, normalised_outcomes, process_weights, step_columns


@register_adv_est(AdvantageEstimator.GDPO, columns=STEP_COLUMNS)
def gdpo(inputs: AdvantageInputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalise each reward within the group, add with weights, bring the batch to one scale.

        q_n     = mean_k s_{n,k}                                            (0 without steps)
        B_n     = beta * norm_G(q_n) + (1 - beta) * norm_G(r_out_n)
        A[n, t] = (B_n - mean B) / (std B + epsilon)                        over all responses of the batch

    Adding first, as `grpo` does, gives many different pairs (q, r_out) nearly the same advantage, and the reward with
    the wider scale decides. The last line is left out with `options.gdpo_batch_norm=False`.

    What has no score: a group in which any response is unscored gets norm_G(r_out) alone, with full weight, and takes
    part in the batch's scale. Equal values in a group, and a group of one, give 0.

    Args:
        inputs: Reads `step_scores`, `step_ends`, `step_mask`, `is_scored`, `rule_scores`, `response_mask`,
            `group_index`, `beta`, `norm_adv_by_std` (False centres only, both norm_G), `epsilon`,
            `options.gdpo_batch_norm`. `token_level_rewards`, the trajectory score and its weight alpha are not read.

    Returns:
        advantages [S, R] float32, 0 outside the mask;
        returns [S, R] float32, beta * q_n + (1 - beta) * r_out_n on every token.

    Raises:
        ValueError: A column it reads is missing.

    Source:
        GDPO, arXiv 2601.05242, for any number of rewards; here two. Weighted as in its weighted variant, with beta
        and 1 - beta. Batch statistics are over responses, not tokens, as in the paper; deviations take n - 1.
    """
    scores, _, step_mask, outcome = step_columns(inputs)
    mask, groups = inputs.response_mask.bool(), inputs.group_index
    quality = mean_step_scores(scores, step_mask)
    everyone = torch.ones_like(groups, dtype=torch.bool)
    process = normalise_in_groups(quality, groups, everyone, inputs.norm_adv_by_std, inputs.epsilon)
    beta = process_weights(inputs)
    blended = beta * process + (1 - beta) * normalised_outcomes(inputs)
    if inputs.options.gdpo_batch_norm:
        blended = normalise_in_groups(blended, torch.zeros_like(groups), everyone, True, inputs.epsilon)
    returns = beta * quality + (1 - beta) * outcome
    return blended[:, None] * mask, returns[:, None] * mask
