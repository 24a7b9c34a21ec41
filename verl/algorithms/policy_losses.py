# SPDX-License-Identifier: Apache-2.0
"""Policy losses per token, before any averaging. They know no micro-batch, no rank and no model.

How the matrix becomes one number is `verl.algorithms.aggregation`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from verl.algorithms.masked import masked_sum
from verl.algorithms.registry import POLICY_LOSSES, register_policy_loss

MAX_LOG_RATIO = 20.0


@dataclass(frozen=True)
class ClipSettings:
    """Bounds of the clipped surrogate.

    Attributes:
        clip_ratio_low: The ratio is clipped from below at 1 - this (0 to 1).
        clip_ratio_high: The ratio is clipped from above at 1 + this; larger than the low one is DAPO's clip-higher.
        clip_ratio_c: With a negative advantage the loss per token is at most this times |advantage| (above 1), the dual
            clip; None leaves it unbounded.
    """

    clip_ratio_low: float = 0.2
    clip_ratio_high: float = 0.2
    clip_ratio_c: float | None = 3.0

    def __post_init__(self) -> None:
        """Refuse bounds that make no sense."""
        if not 0 <= self.clip_ratio_low <= 1 or self.clip_ratio_high < 0:
            raise ValueError(f"clip ratios must be 0 <= low <= 1 and high >= 0, found {self}")
        if self.clip_ratio_c is not None and self.clip_ratio_c <= 1:
            raise ValueError(f"clip_ratio_c must be above 1 (or None), found {self.clip_ratio_c}")


@dataclass(frozen=True)
class PolicyLoss:
    """A loss per token and what to log of it.

    Attributes:
        loss: [S, R] float32, 0 outside the mask, with gradient.
        metric_sums: Name to scalar, summed over the tokens of the mask, without gradient. Sums (and not means) can be
            added over micro-batches and ranks before the one division.
        num_tokens: Scalar int64, tokens of the mask.
    """

    loss: torch.Tensor
    metric_sums: dict[str, torch.Tensor]
    num_tokens: torch.Tensor

    @property
    def metrics(self) -> dict[str, torch.Tensor]:
        """Means over the tokens of this matrix alone."""
        return {name: total / self.num_tokens.clamp(min=1) for name, total in self.metric_sums.items()}


class PolicyLossFn(Protocol):
    """The shape of a registered policy loss."""

    def __call__(
        self,
        log_prob: torch.Tensor,
        old_log_prob: torch.Tensor,
        advantages: torch.Tensor,
        response_mask: torch.Tensor,
        settings: ClipSettings,
    ) -> PolicyLoss:
        """Compute the loss per token; all tensors are [S, R]."""
        ...


def get_policy_loss_fn(name: str) -> PolicyLossFn:
    """Look up a policy loss.

    Args:
        name: Registered name, `vanilla` for the clipped surrogate.

    Returns:
        The function.

    Raises:
        UserError: Unknown name.
    """
    return POLICY_LOSSES.get(name)


@register_policy_loss("vanilla")
def clipped_surrogate(
    log_prob: torch.Tensor,
    old_log_prob: torch.Tensor,
    advantages: torch.Tensor,
    response_mask: torch.Tensor,
    settings: ClipSettings,
) -> PolicyLoss:
    """Compute PPO's clipped surrogate with separate bounds and the dual clip.

        ratio = exp(log_prob - old_log_prob)
        loss  = max(-A * ratio, -A * clip(ratio, 1 - low, 1 + high))
        A < 0:  loss = min(loss, -A * c)

    Args:
        log_prob: [S, R] float, of the present policy, with gradient.
        old_log_prob: [S, R] float32, of the policy before the update.
        advantages: [S, R] float32.
        response_mask: [S, R] int or bool; values outside it do not matter, NaN included.
        settings: The bounds.

    Returns:
        The loss and the sums `clipfrac` (tokens on which the outer bounds hold), `clipfrac_lower` (tokens on which the
        dual clip holds) and `ppo_kl` (old_log_prob - log_prob, the k1 estimate of KL(old || new)).

    Source:
        PPO: arXiv 1707.06347, Eq. 7. Dual clip: arXiv 1912.09729, Eq. 5. Clip-higher: DAPO, arXiv 2503.14476.
        Departure: the log ratio is cut to [-20, 20] before exp, so that one diverged token gives a large and not an
        infinite loss; within these bounds nothing changes.
    """
    mask = response_mask.bool()
    zeros = torch.zeros_like(old_log_prob, dtype=torch.float32)
    log_ratio = torch.where(mask, log_prob.float() - old_log_prob.float(), zeros)
    weight = torch.where(mask, advantages.float(), zeros)
    ratio = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    free = -weight * ratio
    bound = -weight * ratio.clamp(1 - settings.clip_ratio_low, 1 + settings.clip_ratio_high)
    loss = torch.maximum(free, bound)
    is_lower = torch.zeros_like(mask)
    if settings.clip_ratio_c is not None:
        ceiling = -weight * settings.clip_ratio_c
        is_lower = (weight < 0) & (ceiling < loss)
        loss = torch.where(weight < 0, torch.minimum(loss, ceiling), loss)
    sums = {
        "clipfrac": masked_sum((bound > free).float(), mask),
        "clipfrac_lower": masked_sum(is_lower.float(), mask),
        "ppo_kl": masked_sum(-log_ratio.detach(), mask),
    }
    return PolicyLoss(loss, {name: value.detach() for name, value in sums.items()}, mask.sum())
