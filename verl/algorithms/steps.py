# SPDX-License-Identifier: Apache-2.0
"""What estimators that read single step scores have in common. Knows no scorer and no way of crediting steps."""

from __future__ import annotations

import torch

from verl.algorithms.inputs import AdvantageInputs
from verl.algorithms.masked import masked_mean, normalise_in_groups, sums_to_the_right

STEP_COLUMNS = ("step_scores", "step_ends", "step_mask", "rule_scores")
"""Attributes of `AdvantageInputs` that every one of them reads."""


def step_columns(inputs: AdvantageInputs) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Take out what `STEP_COLUMNS` names.

    Args:
        inputs: The estimator's inputs.

    Returns:
        Scores [S, K] float32, 0 where there is no step; ends [S, K] int64, 0 where there is no step; the steps' mask
        [S, K] bool; outcome rewards [S] float32.

    Raises:
        ValueError: A column is missing.
    """
    inputs.require(*STEP_COLUMNS)
    assert inputs.step_scores is not None and inputs.step_ends is not None
    assert inputs.step_mask is not None and inputs.rule_scores is not None
    mask = inputs.step_mask.bool()
    scores, ends = inputs.step_scores.float(), inputs.step_ends.long()
    scores, ends = (torch.where(mask, values, torch.zeros_like(values)) for values in (scores, ends))
    return scores, ends, mask, inputs.rule_scores.float()


def process_weights(inputs: AdvantageInputs) -> torch.Tensor:
    """Return the weight of each response's process part; 1 minus it is that of its outcome part.

    Args:
        inputs: Reads `is_scored`, `group_index`, `beta`.

    Returns:
        [S] float32: `beta`, and 0 for every response of a group in which any response is unscored. One group never
        mixes two scales; this is `on_error=rule_only`.
    """
    weights = torch.full(inputs.group_index.shape, inputs.beta, device=inputs.group_index.device)
    if inputs.is_scored is None:
        return weights
    is_spoiled = torch.isin(inputs.group_index, inputs.group_index[~inputs.is_scored.bool()])
    return weights.masked_fill(is_spoiled, 0.0)


def normalised_outcomes(inputs: AdvantageInputs) -> torch.Tensor:
    """Return [S]: norm_G(r_out), each response's outcome reward among those of its group.

    Args:
        inputs: Reads `rule_scores`, `group_index`, `norm_adv_by_std`, `epsilon`.
    """
    assert inputs.rule_scores is not None
    outcome = inputs.rule_scores.float()
    everyone = torch.ones_like(inputs.group_index, dtype=torch.bool)
    return normalise_in_groups(outcome, inputs.group_index, everyone, inputs.norm_adv_by_std, inputs.epsilon)


def mean_step_scores(scores: torch.Tensor, step_mask: torch.Tensor) -> torch.Tensor:
    """Return [S]: the mean of each response's step scores, 0 without steps (as in Eq. 11, whose alpha is not used).

    Args:
        scores: [S, K] float.
        step_mask: [S, K] bool.
    """
    return masked_mean(scores.double(), step_mask, dim=-1).to(scores.dtype)


def later_steps(
    step_values: torch.Tensor, step_ends: torch.Tensor, step_mask: torch.Tensor, width: int
) -> torch.Tensor:
    """Give each token the sum of the values of the steps that end there or later.

    Args:
        step_values: [S, K] float.
        step_ends: [S, K] int64, tokens; 0 where there is no step.
        step_mask: [S, K] bool.
        width: R, response tokens.

    Returns:
        [S, R] in the dtype of `step_values`; 0 after the last step's end.
    """
    values = torch.where(step_mask, step_values, torch.zeros_like(step_values))
    return sums_to_the_right(values.new_zeros(len(values), width).scatter_add(1, step_ends, values))


def own_step(step_values: torch.Tensor, step_ends: torch.Tensor, step_mask: torch.Tensor, width: int) -> torch.Tensor:
    """Give each token the value of the step it belongs to: the first one that ends there or later.

    Args:
        step_values: [S, K] float.
        step_ends: [S, K] int64, tokens, rising.
        step_mask: [S, K] bool.
        width: R, response tokens.

    Returns:
        [S, R] in the dtype of `step_values`; 0 after the last step's end.
    """
    ends = torch.where(step_mask, step_ends, torch.full_like(step_ends, width))
    tokens = torch.arange(width, device=ends.device).expand(len(ends), width).contiguous()
    values = torch.where(step_mask, step_values, torch.zeros_like(step_values))
    # one column more: a token behind all K steps finds its value there
    return torch.nn.functional.pad(values, (0, 1)).gather(1, torch.searchsorted(ends, tokens))
