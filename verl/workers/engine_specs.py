# SPDX-License-Identifier: Apache-2.0
"""From the user's keys to the specs of a training engine and of a policy update. Pure translation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from verl.algorithms.policy_losses import ClipSettings
from verl.config import PPOTrainerConfig
from verl.config.batch_plan import BatchPlan, MicroBatchLimit, actor_limit, log_prob_limit
from verl.config.engine import FSDPConfig, MegatronConfig, OptimConfig
from verl.config.model import ModelConfig
from verl.engines.adapters import LoraSpec
from verl.engines.base import EngineSpec, MegatronSpec, OptimizerSpec, PrecisionSpec, ShardingSpec
from verl.engines.micro_batches import MicroBatchSpec
from verl.engines.policy_update import PolicyUpdateSpec
from verl.workers.correction_specs import correction_settings


def actor_engine_spec(config: PPOTrainerConfig, device: str, total_optimizer_steps: int) -> EngineSpec:
    """Engine of the policy.

    Args:
        config: The run's configuration.
        device: `cuda` or `cpu`.
        total_optimizer_steps: Of the whole run; end of the learning-rate schedule.

    Returns:
        The spec, the same on every rank.
    """
    actor = config.actor_rollout_ref.actor
    is_megatron = actor.engine_name == "megatron"
    return EngineSpec(
        **_model_arguments(config.actor_rollout_ref.model),
        strategy=actor.engine_name,
        device=device,
        optimizer=optimizer_spec(actor.optim, actor.grad_clip, total_optimizer_steps),
        megatron=megatron_spec(actor.megatron),
        precision=PrecisionSpec(compute=actor.megatron.dtype) if is_megatron else precision_spec(actor.fsdp_config),
        sharding=sharding_spec(actor.fsdp_config, actor.ulysses_sequence_parallel_size),
        compile_layers=actor.use_torch_compile,
        **training_arguments(config.actor_rollout_ref.model, "actor_rollout_ref.model"),
    )


def ref_engine_spec(config: PPOTrainerConfig, device: str) -> EngineSpec:
    """Engine of the frozen reference.

    Args:
        config: The run's configuration.
        device: `cuda` or `cpu`.

    Returns:
        The spec, the same on every rank.
    """
    actor, ref = config.actor_rollout_ref.actor, config.actor_rollout_ref.ref
    fsdp, dtype = ref.fsdp_config, ref.megatron.dtype
    is_megatron = actor.engine_name == "megatron"
    return EngineSpec(
        **_model_arguments(config.actor_rollout_ref.model),
        strategy=actor.engine_name,
        device=device,
        optimizer=None,
        megatron=megatron_spec(actor.megatron),
        precision=PrecisionSpec(dtype, dtype) if is_megatron else precision_spec(fsdp),
        sharding=sharding_spec(fsdp, ref.ulysses_sequence_parallel_size or actor.ulysses_sequence_parallel_size),
        gradient_checkpointing=False,
    )


def optimizer_spec(optim: OptimConfig, grad_clip: float, total_optimizer_steps: int) -> OptimizerSpec:
    """Optimizer and schedule.

    Args:
        optim: The `optim` section.
        grad_clip: Largest global gradient norm.
        total_optimizer_steps: Of the whole run.

    Returns:
        The spec; `lr_warmup_steps` wins over `lr_warmup_steps_ratio` when it is not -1.
    """
    warmup = optim.lr_warmup_steps
    if warmup < 0:
        warmup = round(optim.lr_warmup_steps_ratio * total_optimizer_steps)
    return OptimizerSpec(
        lr=optim.lr,
        betas=(optim.betas[0], optim.betas[1]),
        eps=optim.eps,
        weight_decay=optim.weight_decay,
        clip_grad=grad_clip,
        schedule=optim.lr_scheduler_type,
        warmup_steps=warmup,
        total_steps=total_optimizer_steps,
        min_lr_ratio=optim.min_lr_ratio,
    )


def precision_spec(fsdp: FSDPConfig) -> PrecisionSpec:
    """Dtypes.

    Args:
        fsdp: The `fsdp_config` section.

    Returns:
        The spec.
    """
    return PrecisionSpec(fsdp.model_dtype, fsdp.mixed_precision.param_dtype, fsdp.mixed_precision.reduce_dtype)


def training_arguments(model: ModelConfig, section: str) -> dict[str, Any]:
    """How much of a model is trained, and what is kept for its backward pass.

    Args:
        model: The section of a trained model.
        section: Its name, for messages.

    Returns:
        Arguments of an `EngineSpec`.
    """
    lora = LoraSpec(model.lora_rank, model.lora_alpha, model.target_modules, f"{section}.target_modules")
    return {
        "lora": lora if model.lora_rank else None,
        "gradient_checkpointing": model.enable_gradient_checkpointing,
        "activation_offload": model.enable_activation_offload,
    }


def sharding_spec(fsdp: FSDPConfig, sequence_parallel: int) -> ShardingSpec:
    """Spread over ranks and memories.

    Args:
        fsdp: The `fsdp_config` section.
        sequence_parallel: Ranks that share one sequence.

    Returns:
        The spec.
    """
    return ShardingSpec(
        shard_size=fsdp.fsdp_size,
        reshard_after_forward=fsdp.reshard_after_forward,
        forward_prefetch=fsdp.forward_prefetch,
        cpu_offload=fsdp.offload_policy,
        sequence_parallel=sequence_parallel,
    )


def megatron_spec(megatron: MegatronConfig) -> MegatronSpec:
    """Spread over ranks by Megatron-core.

    Args:
        megatron: The actor's `megatron` section; the reference takes its sizes.

    Returns:
        The spec.
    """
    recompute = megatron.override_transformer_config
    return MegatronSpec(
        tensor_parallel=megatron.tensor_model_parallel_size,
        pipeline_parallel=megatron.pipeline_model_parallel_size,
        sequence_parallel=megatron.sequence_parallel,
        distributed_optimizer=megatron.use_distributed_optimizer,
        recompute_granularity=recompute.recompute_granularity,
        recompute_method=recompute.recompute_method,
        recompute_num_layers=recompute.recompute_num_layers,
        grad_offload=megatron.grad_offload,
    )


@dataclass(frozen=True)
class IdleOffload:
    """What leaves the device while an engine is idle.

    Args:
        weights: Its weights.
        optimizer: Its optimizer states.
        gradients: Its gradient buffers (Megatron; with FSDP2 gradients exist only during an update).
    """

    weights: bool
    optimizer: bool = False
    gradients: bool = False

    @property
    def is_on(self) -> bool:
        """Whether anything does."""
        return self.weights or self.optimizer or self.gradients


def idle_offload(config: PPOTrainerConfig, is_ref: bool) -> IdleOffload:
    """Read what the chosen engine's section offloads.

    Args:
        config: The run's configuration.
        is_ref: Whether for the reference.

    Returns:
        The switches.
    """
    actor, ref = config.actor_rollout_ref.actor, config.actor_rollout_ref.ref
    if actor.engine_name == "megatron":
        own = actor.megatron
        whole = IdleOffload(own.param_offload, own.optimizer_offload, own.grad_offload)
        return IdleOffload(ref.megatron.param_offload) if is_ref else whole
    sharding = ref.fsdp_config if is_ref else actor.fsdp_config
    return IdleOffload(sharding.param_offload, sharding.optimizer_offload and not is_ref)


def actor_micro_batches(config: PPOTrainerConfig) -> MicroBatchSpec:
    """Limits of one forward and backward pass of the update.

    Args:
        config: The run's configuration.

    Returns:
        The spec.
    """
    return _micro_batches(config, actor_limit(config), "actor_rollout_ref.actor.ppo_max_token_len_per_gpu")


def log_prob_micro_batches(config: PPOTrainerConfig, is_ref: bool) -> MicroBatchSpec:
    """Limits of one forward pass of the old or the reference log-probs.

    Args:
        config: The run's configuration.
        is_ref: Whether for the reference.

    Returns:
        The spec.
    """
    section = "ref" if is_ref else "rollout"
    limit = log_prob_limit(config, reference=is_ref)
    return _micro_batches(config, limit, f"actor_rollout_ref.{section}.log_prob_max_token_len_per_gpu")


def policy_update_spec(config: PPOTrainerConfig, shuffle_seed: int) -> PolicyUpdateSpec:
    """How a rank's share of a training batch becomes optimizer steps.

    Args:
        config: The run's configuration.
        shuffle_seed: Seed of the mini-batch order, used when `actor.shuffle` is on; the same on every rank.

    Returns:
        The spec.
    """
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    correction = config.algorithm.rollout_correction
    return PolicyUpdateSpec(
        mini_batch_size=BatchPlan.from_config(config).mini_batch_sequences_per_rank,
        micro=actor_micro_batches(config),
        max_response_len=config.data.max_response_length,
        epochs=actor.ppo_epochs,
        shuffle_seed=shuffle_seed if actor.shuffle else None,
        clip=ClipSettings(actor.clip_low, actor.clip_high, actor.clip_ratio_c),
        loss_agg_mode=actor.loss_agg_mode,
        temperature=rollout.temperature,
        entropy_coeff=actor.entropy_coeff,
        kl_loss_coef=actor.kl_loss_coef if actor.use_kl_loss else None,
        kl_loss_type=actor.kl_loss_type,
        live_correction=correction_settings(correction) if correction.bypass_old_log_probs else None,
    )


def _micro_batches(config: PPOTrainerConfig, limit: MicroBatchLimit, key: str) -> MicroBatchSpec:
    return MicroBatchSpec(
        max_tokens=limit.max_tokens,
        max_sequences=limit.max_sequences,
        padded=not config.actor_rollout_ref.model.use_remove_padding,
        key=key,
    )


def _model_arguments(model: ModelConfig) -> dict[str, Any]:
    return {
        "model_path": model.path,
        "trust_remote_code": model.trust_remote_code,
        "config_overrides": dict(model.override_config),
    }
