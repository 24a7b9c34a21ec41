# SPDX-License-Identifier: Apache-2.0
"""From the keys of SFT and PRM training to the specs of a training engine. Pure translation."""

from __future__ import annotations

from verl.config import PRMTrainerConfig, SFTTrainerConfig, SupervisedBatchPlan
from verl.engines.base import CAUSAL_LM, EngineSpec
from verl.engines.micro_batches import MicroBatchSpec
from verl.workers.engine_specs import optimizer_spec, precision_spec, sharding_spec, training_arguments

SupervisedTrainerRoot = SFTTrainerConfig | PRMTrainerConfig
PRM_CLASS = "verl.rewards.prm.model:Qwen2ForProcessRewardModel"


def supervised_engine_spec(config: SupervisedTrainerRoot, device: str, total_steps: int) -> EngineSpec:
    """Engine of the trained model.

    Args:
        config: The run's configuration.
        device: `cuda` or `cpu`.
        total_steps: Optimizer steps of the whole run; end of the learning-rate schedule.

    Returns:
        The spec, the same on every rank. A PRM may start from a language model: its head then starts at random.
    """
    is_prm = isinstance(config, PRMTrainerConfig)
    return EngineSpec(
        config.model.path,
        optimizer_spec(config.optim, config.grad_clip, total_steps),
        device=device,
        model_class=PRM_CLASS if is_prm else CAUSAL_LM,
        fresh_weights=("score.",) if is_prm else (),
        trust_remote_code=config.model.trust_remote_code,
        config_overrides=dict(config.model.override_config),
        head="classification" if is_prm else "log_probs",
        precision=precision_spec(config.fsdp_config),
        sharding=sharding_spec(config.fsdp_config, config.ulysses_sequence_parallel_size),
        **training_arguments(config.model, "model"),
        path_key="model.path",
    )


def supervised_micro_batches(config: SupervisedTrainerRoot) -> MicroBatchSpec:
    """Limits of one forward and backward pass.

    Args:
        config: The run's configuration.

    Returns:
        The spec.
    """
    limit = SupervisedBatchPlan.from_config(config).micro
    return MicroBatchSpec(
        max_tokens=limit.max_tokens,
        max_sequences=limit.max_sequences,
        padded=not config.model.use_remove_padding,
        key="max_token_len_per_gpu",
    )
