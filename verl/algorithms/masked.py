# SPDX-License-Identifier: Apache-2.0
"""Sums, means and normalisations over the true entries of a mask or within groups; knows nothing of rewards."""

from __future__ import annotations

import torch


def masked_sum(values: torch.Tensor, mask: torch.Tensor, dim: int | None = None) -> torch.Tensor:
    """Sum the entries under a mask; what lies outside it does not matter, NaN and infinity included.

    Args:
        values: Float tensor of any shape.
        mask: Same shape, int or bool.
        dim: Dimension to sum over; None sums everything.

    Returns:
        Scalar, or `values` without `dim`.
    """
    kept = torch.where(mask.bool(), values, torch.zeros_like(values))
    return kept.sum() if dim is None else kept.sum(dim)


def masked_mean(values: torch.Tensor, mask: torch.Tensor, dim: int | None = None) -> torch.Tensor:
    """Average the entries under a mask; 0 where the mask has no true entry.

    Args:
        values: Float tensor of any shape.
        mask: Same shape, int or bool.
        dim: Dimension to average over; None averages everything.

    Returns:
        Scalar, or `values` without `dim`.
    """
    count = mask.bool().sum() if dim is None else mask.bool().sum(dim)
    return masked_sum(values, mask, dim) / count.clamp(min=1)


def masked_whiten(values: torch.Tensor, mask: torch.Tensor, epsilon: float = 1e-8) -> torch.Tensor:
    """Shift and scale the entries under a mask to mean 0 and standard deviation 1 (n - 1 in the denominator).

    Args:
        values: Float tensor of any shape.
        mask: Same shape, int or bool.
        epsilon: A standard deviation below it counts as zero.

    Returns:
        Same shape, 0 outside the mask; all 0 with fewer than two entries or (nearly) equal ones.
    """
    one_group = torch.zeros(values.numel(), dtype=torch.int64, device=values.device)
    return normalise_in_groups(values.reshape(-1), one_group, mask.reshape(-1), True, epsilon).reshape(values.shape)


def normalise_in_groups(
    values: torch.Tensor, groups: torch.Tensor, mask: torch.Tensor, by_std: bool, epsilon: float
) -> torch.Tensor:
    """Centre values on the mean of their group and, if wanted, divide by its standard deviation.

    (x - mean) / (std + epsilon), with n - 1 in the denominator of the variance. Computed in float64, so that a group
    of equal float32 values has a deviation of exactly zero whatever its size.

    Args:
        values: [N] float.
        groups: [N] int64, any numbers.
        mask: [N] int or bool; values outside it neither count nor get a result.
        by_std: Whether to divide. A group whose deviation is below `epsilon` then gets 0.
        epsilon: See above.

    Returns:
        [N] in the dtype of `values`; 0 outside the mask and in a group with a single value: without a second
        value there is no baseline.
    """
    is_kept = mask.bool()
    _, group = torch.unique(groups, return_inverse=True)
    kept = torch.where(is_kept, values, torch.zeros_like(values)).double()
    count = _group_sums(is_kept.double(), group)[group]
    centred = (kept - _group_sums(kept, group)[group] / count.clamp(min=1)) * is_kept
    if by_std:
        std = (_group_sums(centred.square(), group)[group] / (count - 1).clamp(min=1)).sqrt()
        centred = torch.where(std >= epsilon, centred / (std + epsilon), torch.zeros_like(centred))
    return centred.to(values.dtype)


def means_of_the_others(values: torch.Tensor, groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Average over the other members of each value's group (leave-one-out).

    Args:
        values: [N] float.
        groups: [N] int64, any numbers.

    Returns:
        [N] float64, the mean of the others, 0 where there are none; [N] bool, whether there are any.
    """
    _, group = torch.unique(groups, return_inverse=True)
    wide = values.double()
    count = _group_sums(torch.ones_like(wide), group)[group]
    others = (_group_sums(wide, group)[group] - wide) / (count - 1).clamp(min=1)
    has_others = count > 1
    return torch.where(has_others, others, torch.zeros_like(others)), has_others


def minus_the_others(values: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Compare each value with the mean of the others of its group: x - mean of the others (RLOO).

    Args:
        values: [N] float.
        groups: [N] int64, any numbers.

    Returns:
        [N] in the dtype of `values`; 0 in a group of one: without another member there is no baseline.
    """
    others, has_others = means_of_the_others(values, groups)
    return ((values.double() - others) * has_others).to(values.dtype)


def weighted_group_means(values: torch.Tensor, weights: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Average within groups, each value by its weight.

    Args:
        values: [N] float.
        weights: [N] float or int, not negative.
        groups: [N] int64, any numbers.

    Returns:
        [N] float64, the mean of each value's group; 0 where all weights are 0.
    """
    _, group = torch.unique(groups, return_inverse=True)
    total = _group_sums(weights.double(), group)
    means = _group_sums(values.double() * weights.double(), group) / torch.where(total > 0, total, 1.0)
    return means[group]


def sums_to_the_right(values: torch.Tensor) -> torch.Tensor:
    """Add up each row from its right end: out[s, t] = sum of values[s, u] over u >= t.

    Args:
        values: [S, R] float.

    Returns:
        [S, R], same dtype.
    """
    return values.flip(-1).cumsum(-1).flip(-1)


def _group_sums(values: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
    return values.new_zeros(int(group.max()) + 1 if group.numel() else 0).index_add_(0, group, values)
