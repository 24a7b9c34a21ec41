# SPDX-License-Identifier: Apache-2.0
"""What a user should know about an accepted GRPO configuration: values that are read differently, or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from verl.config.actor import ActorConfig, RefConfig
from verl.config.algorithm import AlgorithmConfig, RolloutCorrectionConfig
from verl.config.engine import FSDPConfig, MegatronConfig
from verl.config.model import ModelConfig
from verl.config.names import ADV_ESTIMATORS, PROCESS_ESTIMATORS, STD_ESTIMATORS
from verl.config.reward import ProcessRewardConfig

if TYPE_CHECKING:
    from verl.config.root import PPOTrainerConfig

_DEFAULT_ALGORITHM = AlgorithmConfig()
_DEFAULT_CORRECTION = RolloutCorrectionConfig()
_MODEL = ModelConfig()
_FSDP = FSDPConfig()
_DEFAULT_PROCESS = ProcessRewardConfig()
_LEGACY_IGNORES = ("aggregation", "alpha", "score_space", "step_separator", "gate", "beta", "beta_schedule")


def find_notices(config: PPOTrainerConfig) -> list[str]:
    """Say which values have another effect than they seem to have, or none.

    Args:
        config: A root without problems.

    Returns:
        One line per notice.
    """
    return [
        *_actor(config.actor_rollout_ref.actor),
        *_adapters(config),
        *_rewards(config),
        *_estimator(config.algorithm, config.reward_model.process_reward),
        *_correction(config.algorithm.rollout_correction),
        *_asynchrony(config),
        *_run(config),
    ]


def _actor(actor: ActorConfig) -> Iterator[str]:
    key = "actor_rollout_ref.actor"
    if actor.strategy == "fsdp":
        yield f"{key}.strategy=fsdp: there is no FSDP1, fsdp2 is used"
    if actor.engine_name != "megatron" and actor.megatron != MegatronConfig():
        yield f"{key}.megatron: no effect with strategy={actor.strategy}"
    if actor.engine_name == "megatron" and actor.fsdp_config != _FSDP:
        yield f"{key}.fsdp_config: no effect with strategy=megatron (its keys are in {key}.megatron)"
    if actor.ppo_max_token_len_per_gpu is not None and not actor.use_dynamic_bsz:
        yield f"{key}.ppo_max_token_len_per_gpu: no effect with use_dynamic_bsz=False"


def _adapters(config: PPOTrainerConfig) -> Iterator[str]:
    model, ref = config.actor_rollout_ref.model, config.actor_rollout_ref.ref
    if not model.lora_rank:
        changed = [name for name in ("lora_alpha", "target_modules") if getattr(model, name) != getattr(_MODEL, name)]
        if changed:
            yield f"actor_rollout_ref.model.{changed[0]}: no effect with lora_rank=0"
    elif config.needs_reference and ref.fsdp_config != RefConfig().fsdp_config:
        yield "actor_rollout_ref.ref.fsdp_config: no effect with lora_rank (the actor without adapters answers)"


def _rewards(config: PPOTrainerConfig) -> Iterator[str]:
    prm, process = config.reward_model, config.reward_model.process_reward
    changed = [name for name in vars(process) if getattr(process, name) != getattr(_DEFAULT_PROCESS, name)]
    if not config.has_step_scores and set(changed) - {"rule_range"}:
        yield f"reward_model.process_reward.{changed[0]}: no effect, reward_model.enable=False"
    if not prm.enable:
        return
    if not prm.enable_resource_pool and prm.n_gpus_per_node:
        yield "reward_model.n_gpus_per_node: no effect with enable_resource_pool=False (the PRM shares devices)"
    if config.algorithm.adv_estimator in PROCESS_ESTIMATORS:
        name = config.algorithm.adv_estimator
        yield f"reward_model.process_reward.alpha and aggregation: not read by adv_estimator={name}, only beta is"
    if process.mode == "legacy":
        ignored = [name for name in _LEGACY_IGNORES if name in changed]
        if ignored:
            yield f"reward_model.process_reward.{', '.join(ignored)}: no effect with mode=legacy (fixed as published)"
    is_filtered = config.algorithm.group_filter.name != "none"
    if process.beta == 0.0 and not process.beta_schedule and not is_filtered:
        yield "reward_model.process_reward.beta=0: the PRM runs, but its scores do not count"


def _estimator(algorithm: AlgorithmConfig, process: ProcessRewardConfig) -> Iterator[str]:
    name = algorithm.adv_estimator
    if not algorithm.norm_adv_by_std_in_grpo and name in set(ADV_ESTIMATORS) - set(STD_ESTIMATORS):
        yield f"algorithm.norm_adv_by_std_in_grpo=False: no effect with adv_estimator={name}"
    for owner in ("grpo_minform", "grpo_delta", "gdpo"):
        if owner != name and getattr(algorithm, owner) != getattr(_DEFAULT_ALGORITHM, owner):
            yield f"algorithm.{owner}: no effect with adv_estimator={name}"
    if algorithm.group_filter.name == "none" and algorithm.group_filter != _DEFAULT_ALGORITHM.group_filter:
        yield "algorithm.group_filter: no effect with name=none"
    if name == "grpo_minform" and process.score_space == "prob":
        yield "adv_estimator=grpo_minform: PURE's scores are signed (process_reward.score_space=signed), these are prob"


def _correction(correction: RolloutCorrectionConfig) -> Iterator[str]:
    key = "algorithm.rollout_correction"
    if correction.rollout_is is None and correction.rollout_is_threshold != _DEFAULT_CORRECTION.rollout_is_threshold:
        yield f"{key}.rollout_is_threshold: no effect without rollout_is"
    if correction.bypass_old_log_probs and correction.rollout_is is not None:
        yield f"{key}: the loss is a truncated policy gradient; actor.clip_ratio* have no effect"


def _asynchrony(config: PPOTrainerConfig) -> Iterator[str]:
    rollout, steps = config.actor_rollout_ref.rollout, config.trainer.max_staleness
    keeps = rollout.in_flight_update == "keep"
    if keeps and not steps:
        yield "actor_rollout_ref.rollout.in_flight_update: no effect with trainer.max_staleness=0"
    if steps > 1 and not keeps and not rollout.max_in_flight_groups:
        yield (
            f"trainer.max_staleness={steps}: every weight sync waits for all batches ahead, so that 1 is as fast and "
            "fresher, unless actor_rollout_ref.rollout.in_flight_update=keep or max_in_flight_groups is set"
        )


def _run(config: PPOTrainerConfig) -> Iterator[str]:
    custom = config.custom_reward_function
    if custom.path is None and custom.reward_kwargs:
        yield "custom_reward_function.reward_kwargs: no effect without custom_reward_function.path"
    if config.actor_rollout_ref.actor.use_kl_loss and config.algorithm.use_kl_in_reward:
        yield "actor.use_kl_loss and algorithm.use_kl_in_reward: the KL counts in the loss and in the reward"
    if config.trainer.save_freq == 0:
        yield "trainer.save_freq=0: no checkpoint is written, not even at the end"
