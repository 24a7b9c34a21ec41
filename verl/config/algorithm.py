# SPDX-License-Identifier: Apache-2.0
"""Section `algorithm`: from rewards to advantages. Does not know who scored."""

from __future__ import annotations

from dataclasses import dataclass, field

from verl.config.fields import limited
from verl.config.names import KLControllerType, KLType


@dataclass(frozen=True, kw_only=True)
class KLCtrlConfig:
    """Weight of the KL penalty inside the reward (`use_kl_in_reward`)."""

    type: KLControllerType = "fixed"
    """Constant weight, or one that steers the KL towards `target_kl`."""
    kl_coef: float = limited(0.001, low=0.0)
    """(First) weight of the KL penalty."""
    horizon: int = limited(10000, low=1)
    """How slowly `adaptive` moves the weight. Unit: sequences."""
    target_kl: float = limited(0.1, above=0.0)
    """KL that `adaptive` aims at. Unit: nats per response token."""


@dataclass(frozen=True, kw_only=True)
class MinformConfig:
    """Settings of `adv_estimator=grpo_minform` (PURE, arXiv 2504.15275)."""

    temperature: float = limited(0.1, above=0.0)
    """T of the softmax that moves a response's reward to its worst steps; towards 0 the worst step takes all."""


@dataclass(frozen=True, kw_only=True)
class AlgorithmConfig:
    """The advantage estimator and KL in the reward."""

    adv_estimator: str = "grpo"
    """From rewards to advantages. Reads the token rewards: `grpo` (their sum, normalised in the group). Read the
    step scores: `grpo_ps` (each step against all steps of its group), `grpo_minform` (PURE: the worst step still to
    come), `papo` (mean step score, among the correct responses only)."""
    norm_adv_by_std_in_grpo: bool = True
    """Divide by the group's standard deviation; off = Dr.GRPO (arXiv 2503.20783)."""
    use_kl_in_reward: bool = False
    """Subtract a KL penalty from each token's reward."""
    kl_penalty: KLType = "kl"
    """KL estimator inside the reward: kl (= k1), abs, mse (= k2), low_var_kl (= k3)."""
    kl_ctrl: KLCtrlConfig = field(default_factory=KLCtrlConfig)
    """Weight of the KL inside the reward."""
    grpo_minform: MinformConfig = field(default_factory=MinformConfig)
    """Settings of `adv_estimator=grpo_minform`."""
