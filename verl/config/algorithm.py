# SPDX-License-Identifier: Apache-2.0
"""Section `algorithm`: from rewards to advantages. Does not know who scored."""

from __future__ import annotations

from dataclasses import dataclass, field

from verl.config.fields import limited
from verl.config.names import CorrectionLevel, GroupFilterName, KLControllerType, KLType


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
class DeltaConfig:
    """Settings of `adv_estimator=grpo_delta` (arXiv 2410.15115)."""

    clip: bool = True
    """Clip: a step's reward is min(s - eta, 0), so that good steps earn nothing."""
    delta: bool = True
    """Delta: a step's reward is its score less the next step's, so that the sum does not grow with their number."""
    eta: float = 0.9
    """Score at and above which a step counts as good. Unit: that of `score_space`."""


@dataclass(frozen=True, kw_only=True)
class GDPOConfig:
    """Settings of `adv_estimator=gdpo` (arXiv 2601.05242)."""

    batch_norm: bool = True
    """Divide the blended advantages by their standard deviation over the batch."""


@dataclass(frozen=True, kw_only=True)
class GroupFilterConfig:
    """Which responses of a group are trained on."""

    name: GroupFilterName = "none"
    """`prof` (arXiv 2509.03403): keep right answers with high mean step scores and wrong ones with low, as many of one
    kind as of the other (the paper's own: with `adv_estimator=grpo` and `process_reward.beta=0`)."""
    keep: int = limited(0, low=2, or_value=0)
    """Responses kept per group; 0 = half, rounded up. Unit: responses."""
    format_penalty: float = limited(1.0, low=0.0)
    """Taken off the mean step score of a response with one step, or with `max_steps` or more, before ranking."""
    max_steps: int = limited(0, low=2, or_value=0)
    """Number of steps from which a response counts as cut to pieces; 0 = no such limit."""


@dataclass(frozen=True, kw_only=True)
class RolloutCorrectionConfig:
    """What is done about log-probs of the sampler that differ from the trainer's (precision, kernels, top_p).

    The ratio is trainer before the update over sampler, per token. IcePop (arXiv 2510.18855) is `rollout_is=token`,
    `rollout_is_threshold=5`, `mask_low=0.5`, `mask_high=5`.
    """

    bypass_old_log_probs: bool = False
    """Take the sampler's log-probs as the old ones and save a forward pass. The ratio then has the policy in training
    on top: it is the clipped one of the loss, or with `rollout_is` the weight of an unclipped policy gradient."""
    rollout_is: CorrectionLevel | None = None
    """Truncated importance sampling: weigh each token's loss by its own ratio (`token`) or by the product of the
    ratios of its response (`sequence`); null = no weights. The loss is divided by the same counts as without."""
    rollout_is_threshold: float = limited(2.0, above=0.0)
    """Largest weight."""
    mask_low: float | None = limited(None, above=0.0, high=1.0)
    """Leave tokens whose ratio is below it out of the policy loss; null = none."""
    mask_high: float | None = limited(None, low=1.0)
    """Leave tokens whose ratio is above it out of the policy loss; null = none."""

    @property
    def is_on(self) -> bool:
        """Whether anything here changes the update."""
        has_mask = self.mask_low is not None or self.mask_high is not None
        return self.weighs_cut_samples or has_mask

    @property
    def weighs_cut_samples(self) -> bool:
        """Whether the ratio enters the loss, so that sampling from a cut distribution is accounted for."""
        return self.bypass_old_log_probs or self.rollout_is is not None


@dataclass(frozen=True, kw_only=True)
class AlgorithmConfig:
    """The advantage estimator and KL in the reward."""

    adv_estimator: str = "grpo"
    """From rewards to advantages. Read the token rewards: `grpo` (their sum, normalised in the group), `rloo` (less the
    mean of the others), `opo` (less the length-weighted mean), `remax` (less the greedy response's; takes n=1),
    `reinforce_plus_plus` (what is to come, normalised in the batch; takes n=1), `reinforce_plus_plus_baseline`. Read
    the step scores: `grpo_ps` (each step against all steps of its group), `grpo_minform` (PURE: the worst step still
    to come), `grpo_delta` (Clip and Delta), `papo` (mean step score, among the correct responses only), `gdpo` (mean
    step score, normalised apart)."""
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
    grpo_delta: DeltaConfig = field(default_factory=DeltaConfig)
    """Settings of `adv_estimator=grpo_delta`."""
    gdpo: GDPOConfig = field(default_factory=GDPOConfig)
    """Settings of `adv_estimator=gdpo`."""
    group_filter: GroupFilterConfig = field(default_factory=GroupFilterConfig)
    """Which responses of a group are trained on."""
    rollout_correction: RolloutCorrectionConfig = field(default_factory=RolloutCorrectionConfig)
    """What is done about log-probs of the sampler that differ from the trainer's."""
