# SPDX-License-Identifier: Apache-2.0
"""Sections `actor_rollout_ref.actor` and `.ref`: the policy update and the reference log-probs.

Derived numbers live in `batch_plan`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from verl.config.engine import FSDPConfig, MegatronConfig, OptimConfig, RefMegatronConfig
from verl.config.fields import limited
from verl.config.names import KLType, LossAggMode, Strategy


@dataclass(frozen=True, kw_only=True)
class ActorConfig:
    """The policy update: loss, batch sizes, optimizer, sharding."""

    strategy: Strategy = "fsdp2"
    """Training engine. `fsdp` means `fsdp2` here (there is no FSDP1)."""
    ppo_mini_batch_size: int = limited(256, low=1)
    """Prompts per optimizer step (all `rollout.n` responses of a prompt stay together). Unit: prompts."""
    ppo_micro_batch_size_per_gpu: int | None = limited(None, low=1)
    """Most sequences in one forward/backward on one rank; null = no such limit. Unit: sequences."""
    use_dynamic_bsz: bool = True
    """Form micro-batches under the token budget `ppo_max_token_len_per_gpu` as well as the sequence limit."""
    ppo_max_token_len_per_gpu: int | None = limited(None, low=1)
    """Most tokens in one forward/backward on one rank; null = max(16384, one full sequence). Unit: tokens."""
    ppo_epochs: int = limited(1, low=1)
    """Passes over each batch of rollouts."""
    recompute_old_log_probs: bool = False
    """Compute the old log-probs in a forward pass of their own also where the update's own are the same: in a training
    step of one optimizer step, without KL in the reward and `algorithm.rollout_correction`."""
    shuffle: bool = False
    """Put every rank's responses in a new random order in every epoch before they are cut into mini-batches; responses
    to one prompt are then spread over them. Off = they stay together."""
    grad_clip: float = limited(1.0, above=0.0)
    """Largest global gradient norm."""
    clip_ratio: float = limited(0.2, above=0.0)
    """PPO clip range of the importance ratio, used on a side whose own key is null."""
    clip_ratio_low: float | None = limited(None, above=0.0, high=1.0)
    """Lower clip range: ratio >= 1 - this; null = `clip_ratio`."""
    clip_ratio_high: float | None = limited(None, above=0.0)
    """Upper clip range (clip-higher): ratio <= 1 + this; null = `clip_ratio`."""
    clip_ratio_c: float = limited(3.0, above=1.0)
    """Dual-clip bound of the loss for negative advantages (arXiv 1912.09729)."""
    loss_agg_mode: LossAggMode = "token-mean"
    """How token losses become one number; denominators are global over the mini-batch. `seq-mean-token-sum-norm`
    divides by `data.max_response_length` (Dr.GRPO)."""
    entropy_coeff: float = 0.0
    """Weight of the entropy bonus in the loss."""
    use_kl_loss: bool = False
    """Add a KL term against the reference model to the loss."""
    kl_loss_coef: float = limited(0.001, low=0.0)
    """Weight of the KL term."""
    kl_loss_type: KLType = "low_var_kl"
    """KL estimator: kl (= k1), abs, mse (= k2), low_var_kl (= k3)."""
    ulysses_sequence_parallel_size: int = limited(1, low=1)
    """Ranks that share one sequence (Ulysses): each has a slice of its tokens, and in attention a part of the heads.
    Must divide the ranks and the model's heads. Unit: ranks."""
    use_torch_compile: bool = False
    """Compile what lies between the attentions of each layer (norms and feed-forward): faster steps for some seconds of
    compiling at the start. With `strategy=fsdp2`; on a CPU it needs a C++ compiler."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimizer."""
    fsdp_config: FSDPConfig = field(default_factory=FSDPConfig)
    """Sharding when `strategy` is fsdp2."""
    megatron: MegatronConfig = field(default_factory=MegatronConfig)
    """Parallelism when `strategy` is megatron."""

    @property
    def compute_dtype(self) -> str:
        """Type of weights and activations in the engine's forward and backward passes."""
        is_megatron = self.engine_name == "megatron"
        return self.megatron.dtype if is_megatron else self.fsdp_config.mixed_precision.param_dtype

    @property
    def clip_low(self) -> float:
        """Lower clip range in force."""
        return self.clip_ratio if self.clip_ratio_low is None else self.clip_ratio_low

    @property
    def clip_high(self) -> float:
        """Upper clip range in force."""
        return self.clip_ratio if self.clip_ratio_high is None else self.clip_ratio_high

    @property
    def engine_name(self) -> str:
        """Engine in force: `fsdp` is read as `fsdp2`."""
        return "fsdp2" if self.strategy == "fsdp" else self.strategy


def _frozen_model_sharding() -> FSDPConfig:
    return FSDPConfig(model_dtype="bfloat16")


@dataclass(frozen=True, kw_only=True)
class RefConfig:
    """The reference model's log-probs. It exists when a KL term is on; its engine is the actor's."""

    fsdp_config: FSDPConfig = field(default_factory=_frozen_model_sharding)
    """Sharding of the reference model when the actor's `strategy` is fsdp2."""
    megatron: RefMegatronConfig = field(default_factory=RefMegatronConfig)
    """Its parallelism when the actor's `strategy` is megatron."""
    log_prob_micro_batch_size_per_gpu: int | None = limited(None, low=1)
    """Most sequences in one forward on one rank; null = the actor's limit. Unit: sequences."""
    log_prob_use_dynamic_bsz: bool | None = None
    """Token budget on or off; null = as for the actor."""
    log_prob_max_token_len_per_gpu: int | None = limited(None, low=1)
    """Most tokens in one forward on one rank; null = the actor's budget. Unit: tokens."""
    ulysses_sequence_parallel_size: int | None = limited(None, low=1)
    """Ranks that share one sequence; null = as for the actor. Unit: ranks."""
