# SPDX-License-Identifier: Apache-2.0
"""KL between policy and reference from sampled tokens: the estimates k1, k2, k3, and the two coefficient controllers.

Knows neither models nor batches. Used as a loss (per token, with gradient) or as a penalty in the reward (without).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from verl.algorithms.masked import masked_mean
from verl.utils.errors import UserError

MAX_LOG_RATIO = 20.0
MAX_K3 = 10.0
_SPELLINGS = {"k1": "k1", "kl": "k1", "abs": "abs", "k2": "k2", "mse": "k2", "k3": "k3", "low_var_kl": "k3"}
KL_FORMS = (*_SPELLINGS, *(f"{name}+" for name in _SPELLINGS))


def kl_penalty(logprob: torch.Tensor, ref_logprob: torch.Tensor, kl_penalty: str = "kl") -> torch.Tensor:
    """Estimate KL(policy || reference) at each sampled token.

    With d = logprob - ref_logprob of the sampled token:

        k1, kl           d                       unbiased value, may be negative; as a loss its expected gradient is 0
        abs              |d|                     biased, never negative
        k2, mse          d^2 / 2                 biased value, but its expected gradient on-policy IS that of the KL
        k3, low_var_kl   exp(-d) + d - 1         unbiased value, never negative; its gradient is biased
        NAME+            value of NAME, gradient of k2

    Args:
        logprob: Policy's log-probs, any shape, float.
        ref_logprob: Reference's, same shape; no gradient flows into it.
        kl_penalty: One of `KL_FORMS`.

    Returns:
        Estimate per token, same shape, float32.

    Raises:
        UserError: Unknown form.

    Source:
        J. Schulman, "Approximating KL divergence" (joschu.net/blog/kl-approx.html); k3 as GRPO's loss: DeepSeekMath,
        arXiv 2402.03300, Eq. 4; the gradients: arXiv 2506.09477.
        Safe ranges: in k3, d is cut to [-20, 20] before exp and the result to at most 10. A token beyond (under the
        policy about 11 times less likely than under the reference, or worse) counts 10 and has no gradient.
    """
    form = kl_penalty.removesuffix("+")
    if form not in _SPELLINGS:
        raise UserError.for_key("kl_penalty / kl_loss_type", kl_penalty, f"one of {', '.join(KL_FORMS)}", "Use one")
    difference = logprob.float() - ref_logprob.detach().float()
    value = _estimate(_SPELLINGS[form], difference)
    if not kl_penalty.endswith("+"):
        return value
    carrier = _estimate("k2", difference)
    return value.detach() + (carrier - carrier.detach())


def kl_in_reward(
    token_level_scores: torch.Tensor, kl: torch.Tensor, response_mask: torch.Tensor, kl_coef: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Subtract a KL penalty from the scores, token by token.

        token_level_rewards = token_level_scores - kl_coef * kl        on the mask, 0 outside

    Args:
        token_level_scores: [S, R] float32.
        kl: [S, R] float32, from `kl_penalty` between the old policy and the reference.
        response_mask: [S, R] int or bool.
        kl_coef: The controller's present value.

    Returns:
        token_level_rewards [S, R] float32; mean KL per token (scalar), the input of the controller's `update`.

    Source:
        InstructGPT, arXiv 2203.02155, Eq. 2.
    """
    mask = response_mask.bool()
    kept = torch.where(mask, token_level_scores - kl_coef * kl.detach(), torch.zeros_like(token_level_scores))
    return kept, masked_mean(kl.detach(), mask)


class KLController(Protocol):
    """Holds the coefficient of the KL penalty in the reward."""

    value: float

    def update(self, current_kl: float, n_steps: int) -> None:
        """Adapt the coefficient after a training step."""
        ...


@dataclass
class FixedKLController:
    """A coefficient that stays.

    Attributes:
        value: The coefficient.

    Example:
        >>> FixedKLController(0.1).value
        0.1
    """

    value: float

    def update(self, current_kl: float, n_steps: int) -> None:
        """Change nothing.

        Args:
            current_kl: Mean KL of the step.
            n_steps: Sequences of the step.
        """


@dataclass
class AdaptiveKLController:
    """A coefficient that steers the KL towards a target.

        error = clip(current_kl / target_kl - 1, -0.2, 0.2)        value *= 1 + error * n_steps / horizon

    Attributes:
        value: Present coefficient; start it with the initial one.
        target_kl: Wanted mean KL, in the unit of `update`'s `current_kl` (nats per token in this package), above 0.
        horizon: Sequences after which a constant error of 1 would about double the value, above 0.

    Example:
        >>> controller = AdaptiveKLController(0.1, target_kl=0.5, horizon=100)
        >>> controller.update(current_kl=1.0, n_steps=50)
        >>> round(controller.value, 6)
        0.11

    Source:
        Ziegler et al., arXiv 1909.08593, section 2.2.
    """

    value: float
    target_kl: float
    horizon: float

    def __post_init__(self) -> None:
        """Refuse a target or a horizon that cannot be divided by."""
        if self.target_kl <= 0 or self.horizon <= 0:
            raise ValueError(f"target_kl and horizon must be above 0, found {self.target_kl} and {self.horizon}")

    def update(self, current_kl: float, n_steps: int) -> None:
        """Raise or lower the coefficient by at most 20% times `n_steps / horizon`.

        Args:
            current_kl: Mean KL of the step.
            n_steps: Sequences of the step.
        """
        error = min(max(current_kl / self.target_kl - 1.0, -0.2), 0.2)
        self.value *= 1.0 + error * n_steps / self.horizon


def _estimate(form: str, difference: torch.Tensor) -> torch.Tensor:
    if form == "k1":
        return difference
    if form == "abs":
        return difference.abs()
    if form == "k2":
        return 0.5 * difference.square()
    safe = difference.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return (torch.expm1(-safe) + safe).clamp(max=MAX_K3)
