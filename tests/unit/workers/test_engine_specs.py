# SPDX-License-Identifier: Apache-2.0
"""User keys arrive in the specs of engine and update; every value differs from its default: none can be lost."""

from __future__ import annotations

import pytest

from tests.helpers.configs import load
from verl.algorithms.policy_losses import ClipSettings
from verl.config import FSDPConfig, MixedPrecisionConfig, OptimConfig, PPOTrainerConfig
from verl.engines.adapters import LoraSpec
from verl.engines.base import EngineSpec, OptimizerSpec, PrecisionSpec, ShardingSpec
from verl.engines.micro_batches import MicroBatchSpec
from verl.engines.policy_update import PolicyUpdateSpec
from verl.workers.engine_specs import (
    actor_engine_spec,
    actor_micro_batches,
    log_prob_micro_batches,
    optimizer_spec,
    policy_update_spec,
    precision_spec,
    ref_engine_spec,
    sharding_spec,
)

ACTOR = "actor_rollout_ref.actor"


def config(*overrides: str) -> PPOTrainerConfig:
    return load(
        "trainer.n_gpus_per_node=2",
        "data.train_batch_size=12",
        "data.max_prompt_length=100",
        "data.max_response_length=300",
        f"{ACTOR}.ppo_mini_batch_size=6",
        *overrides,
    ).config


def test_optimizer_takes_every_key() -> None:
    optim = OptimConfig(
        lr=3e-5,
        weight_decay=0.2,
        betas=(0.8, 0.95),
        eps=1e-7,
        lr_warmup_steps=7,
        lr_scheduler_type="cosine",
        min_lr_ratio=0.1,
    )
    expected = OptimizerSpec(
        lr=3e-5,
        betas=(0.8, 0.95),
        eps=1e-7,
        weight_decay=0.2,
        clip_grad=0.5,
        schedule="cosine",
        warmup_steps=7,
        total_steps=40,
        min_lr_ratio=0.1,
    )
    assert optimizer_spec(optim, grad_clip=0.5, total_optimizer_steps=40) == expected


@pytest.mark.parametrize(
    ("steps", "ratio", "warmup"),
    [(-1, 0.1, 4), (-1, 0.0725, 3), (-1, 0.0, 0), (-1, 1.0, 40), (0, 0.5, 0), (3, 0.5, 3)],
)
def test_warm_up_in_steps_wins_over_a_share_of_the_run(steps: int, ratio: float, warmup: int) -> None:
    optim = OptimConfig(lr_warmup_steps=steps, lr_warmup_steps_ratio=ratio)
    assert optimizer_spec(optim, 1.0, total_optimizer_steps=40).warmup_steps == warmup


def test_precision_and_sharding_take_every_key() -> None:
    fsdp = FSDPConfig(
        model_dtype="float16",
        mixed_precision=MixedPrecisionConfig(param_dtype="float32", reduce_dtype="bfloat16"),
        offload_policy=True,
        reshard_after_forward=False,
        forward_prefetch=True,
        fsdp_size=4,
    )
    assert precision_spec(fsdp) == PrecisionSpec(master="float16", compute="float32", reduce="bfloat16")
    assert sharding_spec(fsdp, 2) == ShardingSpec(
        shard_size=4, reshard_after_forward=False, forward_prefetch=True, cpu_offload=True, sequence_parallel=2
    )


def test_the_policy_has_an_optimizer_and_the_reference_none() -> None:
    settings = config(
        "actor_rollout_ref.model.trust_remote_code=True",
        "actor_rollout_ref.model.override_config={rope_theta: 5.0}",
        "actor_rollout_ref.model.enable_gradient_checkpointing=True",
        f"{ACTOR}.strategy=fsdp",
        f"{ACTOR}.use_kl_loss=True",
        f"{ACTOR}.grad_clip=0.25",
        f"{ACTOR}.fsdp_config.mixed_precision.param_dtype=float32",
        "actor_rollout_ref.ref.fsdp_config.model_dtype=float32",
        "actor_rollout_ref.ref.fsdp_config.reshard_after_forward=False",
    )
    policy, reference = settings.actor_rollout_ref, settings.actor_rollout_ref.ref
    shared = {
        "model_path": "org/policy",
        "trust_remote_code": True,
        "config_overrides": {"rope_theta": 5.0},
        "strategy": "fsdp2",
        "device": "cuda",
    }
    assert actor_engine_spec(settings, "cuda", total_optimizer_steps=40) == EngineSpec(
        **shared,
        optimizer=optimizer_spec(policy.actor.optim, 0.25, 40),
        precision=PrecisionSpec("float32", "float32", "float32"),
        sharding=sharding_spec(policy.actor.fsdp_config, 1),
        gradient_checkpointing=True,
    )
    spec = ref_engine_spec(settings, "cuda")
    assert spec == EngineSpec(
        **shared,
        optimizer=None,
        precision=precision_spec(reference.fsdp_config),
        sharding=ShardingSpec(reshard_after_forward=False),
        gradient_checkpointing=False,
    )
    assert spec.precision.master == "float32"


def test_adapters_offload_and_shared_sequences_reach_the_actor_and_the_size_also_the_reference() -> None:
    settings = config(
        "actor_rollout_ref.model.lora_rank=4",
        "actor_rollout_ref.model.lora_alpha=12",
        "actor_rollout_ref.model.target_modules=[q_proj,v_proj]",
        "actor_rollout_ref.model.enable_activation_offload=True",
        f"{ACTOR}.ulysses_sequence_parallel_size=2",
    )
    spec = actor_engine_spec(settings, "cpu", total_optimizer_steps=40)
    assert spec.lora == LoraSpec(4, 12, ("q_proj", "v_proj"), "actor_rollout_ref.model.target_modules")
    assert spec.activation_offload and spec.gradient_checkpointing
    assert spec.sharding.sequence_parallel == 2
    reference = ref_engine_spec(settings, "cpu")
    assert (reference.lora, reference.activation_offload, reference.sharding.sequence_parallel) == (None, False, 2)
    own = ref_engine_spec(config("actor_rollout_ref.ref.ulysses_sequence_parallel_size=2"), "cpu")
    assert own.sharding.sequence_parallel == 2
    assert actor_engine_spec(config(), "cpu", total_optimizer_steps=40).lora is None


def test_the_update_takes_every_key() -> None:
    settings = config(
        f"{ACTOR}.ppo_epochs=3",
        f"{ACTOR}.shuffle=True",
        f"{ACTOR}.clip_ratio_low=0.1",
        f"{ACTOR}.clip_ratio_high=0.28",
        f"{ACTOR}.clip_ratio_c=5.0",
        f"{ACTOR}.loss_agg_mode=seq-mean-token-sum-norm",
        f"{ACTOR}.entropy_coeff=0.01",
        f"{ACTOR}.use_kl_loss=True",
        f"{ACTOR}.kl_loss_coef=0.02",
        f"{ACTOR}.kl_loss_type=mse",
        "actor_rollout_ref.rollout.temperature=0.7",
    )
    assert policy_update_spec(settings, shuffle_seed=9) == PolicyUpdateSpec(
        mini_batch_size=6 * 8 // 2,  # prompts x responses / ranks
        micro=actor_micro_batches(settings),
        max_response_len=300,
        epochs=3,
        shuffle_seed=9,
        clip=ClipSettings(0.1, 0.28, 5.0),
        loss_agg_mode="seq-mean-token-sum-norm",
        temperature=0.7,
        entropy_coeff=0.01,
        kl_loss_coef=0.02,
        kl_loss_type="mse",
    )


def test_what_is_switched_off_stays_out_of_the_update() -> None:
    spec = policy_update_spec(config(f"{ACTOR}.kl_loss_coef=0.02", f"{ACTOR}.clip_ratio=0.3"), shuffle_seed=9)
    assert spec.kl_loss_coef is None
    assert spec.shuffle_seed is None
    assert spec.clip == ClipSettings(0.3, 0.3, 3.0)


def test_micro_batches_name_the_key_that_limits_them() -> None:
    settings = config(
        f"{ACTOR}.ppo_max_token_len_per_gpu=1000",
        f"{ACTOR}.ppo_micro_batch_size_per_gpu=4",
        "actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu=2000",
        "actor_rollout_ref.ref.log_prob_max_token_len_per_gpu=3000",
        "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=16",
        "actor_rollout_ref.model.use_remove_padding=False",
    )
    key = "actor_rollout_ref.{}_max_token_len_per_gpu"
    assert actor_micro_batches(settings) == MicroBatchSpec(1000, 4, True, key.format("actor.ppo"))
    assert log_prob_micro_batches(settings, is_ref=False) == MicroBatchSpec(
        2000, 4, True, key.format("rollout.log_prob")
    )
    assert log_prob_micro_batches(settings, is_ref=True) == MicroBatchSpec(3000, 16, True, key.format("ref.log_prob"))


def test_without_dynamic_size_only_the_number_of_sequences_limits() -> None:
    settings = config(f"{ACTOR}.use_dynamic_bsz=False", f"{ACTOR}.ppo_micro_batch_size_per_gpu=4")
    spec = actor_micro_batches(settings)
    assert (spec.max_tokens, spec.max_sequences, spec.padded) == (None, 4, False)
