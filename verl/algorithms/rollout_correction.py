# SPDX-License-Identifier: Apache-2.0
"""Correction for an engine that samples from slightly another policy than the one that is trained.

The sampler computes with other kernels, another precision and maybe a cut distribution (top_p), or its weights are
older. Its log-probs differ from the trainer's for the same tokens, so the policy gradient is biased. The ratio

    rho = exp(old_log_probs - rollout_log_probs)            trainer before the update over sampler, per token

weighs each token's loss (truncated importance sampling), or decides which tokens count at all (masks). Pure functions
over tensors; they know no engine and no loss.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from verl.algorithms.masked import masked_sum

MAX_LOG_RATIO = 20.0
CORRECTION_LEVELS = ("none", "token", "sequence")


@dataclass(frozen=True)
class CorrectionSettings:
    """What is done with the ratio.

    Attributes:
        level: `token`: each token has the weight of its own ratio; `sequence`: all tokens of a response have the
            weight of the product of its ratios; `none`: every weight is 1.
        cap: Largest weight.
        mask_low: Tokens whose own ratio is below it are left out of the loss; None: none are.
        mask_high: Likewise above it.

    Example:
        >>> icepop = CorrectionSettings(level="token", cap=5.0, mask_low=0.5, mask_high=5.0)
    """

    level: str = "none"
    cap: float = 2.0
    mask_low: float | None = None
    mask_high: float | None = None

    def __post_init__(self) -> None:
        """Refuse settings that make no sense."""
        if self.level not in CORRECTION_LEVELS:
            raise ValueError(f"level must be one of {', '.join(CORRECTION_LEVELS)}, found {self.level!r}")
        if self.cap <= 0:
            raise ValueError(f"cap must be above 0, found {self.cap}")
        if self.mask_low is not None and self.mask_high is not None and self.mask_low >= self.mask_high:
            raise ValueError(f"mask_low must be below mask_high, found {self}")

    @property
    def has_mask(self) -> bool:
        """Whether tokens can be left out."""
        return self.mask_low is not None or self.mask_high is not None

    @property
    def is_on(self) -> bool:
        """Whether the loss changes at all."""
        return self.level != "none" or self.has_mask


def importance_weights(
    old_log_probs: torch.Tensor, rollout_log_probs: torch.Tensor, mask: torch.Tensor, settings: CorrectionSettings
) -> tuple[torch.Tensor, torch.Tensor, dict[str, float]]:
    """Compute the factor of each token's loss.

        rho_t = exp(old_t - rollout_t)
        token      w_t = min(rho_t, cap)
        sequence   w_t = min(prod_u rho_u, cap), the same for all tokens of a response
        none       w_t = 1
        masks      w_t = 0 where rho_t < mask_low or rho_t > mask_high

    IcePop is `token` with both bounds and a cap at or above `mask_high`: rho inside the bounds, 0 outside.

    Args:
        old_log_probs: [S, R] float, of the trainer's policy before the update.
        rollout_log_probs: [S, R] float, of the sampler.
        mask: [S, R] int or bool; values outside it do not matter, NaN included.
        settings: The mode.

    Returns:
        Weights [S, R] float32 without gradient, 0 outside the mask and on tokens left out; keep_mask [S, R] bool, the
        tokens of the mask that are not left out; metrics (see `correction_metrics`), empty when the mask is.
        Equal log-probs give weights of exactly 1 as long as 1 lies within the cap and the bounds.

    Source:
        Truncated importance sampling: Ionides 2008, J. Comput. Graph. Stat. 17(2), Eq. 4; per token between sampler
        and trainer: Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training"; per
        sequence: Liu et al. 2025, "When Speed Kills Stability: Demystifying RL Collapse from the Training-Inference
        Mismatch". Two-sided masks: IcePop, in the Ring-1T report, arXiv 2510.18855.
        Departure: a log ratio is cut to [-20, 20] before exp, so that no weight is infinite before the cap.
    """
    weights, keep_mask, is_capped = token_weights(old_log_probs, rollout_log_probs, mask, settings)
    return weights, keep_mask, correction_metrics(weights, keep_mask, is_capped, mask.bool())


def token_weights(
    old_log_probs: torch.Tensor, rollout_log_probs: torch.Tensor, mask: torch.Tensor, settings: CorrectionSettings
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute `importance_weights` without metrics: nothing leaves the device.

    Args:
        old_log_probs: See there.
        rollout_log_probs: See there.
        mask: See there.
        settings: See there.

    Returns:
        Weights [S, R] float32, keep_mask [S, R] bool, and [S, R] bool, the kept tokens whose weight was capped.
    """
    log_ratio, is_token = masked_log_ratio(old_log_probs, rollout_log_probs, mask), mask.bool()
    ratio = bounded_exp(log_ratio)
    keep_mask = is_token & ~is_outside(ratio, settings)
    weights = ratio
    if settings.level == "sequence":
        weights = bounded_exp(log_ratio.sum(dim=-1, keepdim=True)).expand_as(ratio)
    is_capped = (weights > settings.cap) & keep_mask
    weights = weights.clamp(max=settings.cap)
    if settings.level == "none":
        weights, is_capped = torch.ones_like(ratio), torch.zeros_like(is_capped)
    return torch.where(keep_mask, weights, torch.zeros_like(weights)), keep_mask, is_capped


def correction_metrics(
    weights: torch.Tensor, keep_mask: torch.Tensor, is_capped: torch.Tensor, mask: torch.Tensor
) -> dict[str, float]:
    """What the correction did.

    Args:
        weights: [S, R] float32.
        keep_mask: [S, R] bool.
        is_capped: [S, R] bool, kept tokens whose weight was cut to the cap.
        mask: [S, R] bool, all tokens.

    Returns:
        `rollout/is_weight/{mean,min,max}` of the tokens that are kept; `rollout/is_weight/ess/share`, the effective
        sample size (sum w)^2 / sum w^2 over all tokens as a share of them; `rollout/truncated/share` and
        `rollout/masked/share` of all tokens.

    Source:
        Effective sample size: Kish 1965, Survey Sampling.
    """
    num_tokens = int(mask.sum())
    if not num_tokens:
        return {}
    kept = weights[keep_mask]
    squares = float(kept.double().square().sum())
    return {
        "rollout/is_weight/mean": float(kept.mean()) if kept.numel() else 0.0,
        "rollout/is_weight/min": float(kept.min()) if kept.numel() else 0.0,
        "rollout/is_weight/max": float(kept.max()) if kept.numel() else 0.0,
        "rollout/is_weight/ess/share": float(kept.double().sum()) ** 2 / squares / num_tokens if squares else 0.0,
        "rollout/truncated/share": float(is_capped.sum()) / num_tokens,
        "rollout/masked/share": 1.0 - float(keep_mask.sum()) / num_tokens,
    }


def mismatch_sums(
    old_log_probs: torch.Tensor, rollout_log_probs: torch.Tensor, mask: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Measure how far two policies are apart on tokens that the second one sampled, summed over the tokens.

        log_prob_diff   |old - rollout|
        ratio           rho
        k3              rho - 1 - log rho: mean = KL(rollout || trainer), each term >= 0
        chi2            rho^2 - 1: mean = chi^2(trainer || rollout), the variance of the ratio

    Args:
        old_log_probs: [S, R] float, of the trainer.
        rollout_log_probs: [S, R] float, of the sampler.
        mask: [S, R] int or bool.

    Returns:
        Scalars by the names above, without gradient; divide by the number of tokens.

    Source:
        k3: Schulman 2020, "Approximating KL Divergence". chi^2: E_q[(p/q)^2] - 1, the second moment that bounds the
        variance of an importance weighted mean (Owen 2013, Monte Carlo theory, methods and examples, ch. 9).
    """
    log_ratio = masked_log_ratio(old_log_probs, rollout_log_probs, mask)
    ratio = bounded_exp(log_ratio)
    return {
        "log_prob_diff": log_ratio.abs().sum(),
        "ratio": masked_sum(ratio, mask),
        "k3": (torch.expm1(log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)) - log_ratio).sum(),
        "chi2": masked_sum(ratio.square() - 1, mask),
    }


def masked_log_ratio(old_log_probs: torch.Tensor, other: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Subtract log-probs under a mask.

    Args:
        old_log_probs: [S, R] float.
        other: [S, R] float.
        mask: [S, R] int or bool.

    Returns:
        [S, R] float32 without gradient, 0 outside the mask.
    """
    difference = old_log_probs.detach().float() - other.detach().float()
    return torch.where(mask.bool(), difference, torch.zeros_like(difference))


def bounded_exp(log_ratio: torch.Tensor) -> torch.Tensor:
    """Exponentiate what was cut to [-20, 20]; NaN stays NaN."""
    return log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def is_outside(ratio: torch.Tensor, settings: CorrectionSettings) -> torch.Tensor:
    """Find the ratios outside the bounds; NaN is outside of every bound.

    Args:
        ratio: Float tensor of any shape.
        settings: Holds the bounds.

    Returns:
        Bool, same shape.
    """
    outside = torch.zeros_like(ratio, dtype=torch.bool)
    if settings.mask_low is not None:
        outside |= ~(ratio >= settings.mask_low)
    if settings.mask_high is not None:
        outside |= ~(ratio <= settings.mask_high)
    return outside
