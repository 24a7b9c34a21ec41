# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# Sizes of the miniature, to be sourced: `source recipe/miniature/settings.sh ASSETS`. Sets the variables that scripts
# in examples/grpo_trainer/ read, and MINIATURE_ARGS, the overrides that make a run small enough for two cores.
miniature_assets=$1
export MODEL_PATH=$miniature_assets/policy PRM_PATH=$miniature_assets/prm
export TRAIN_FILES=$miniature_assets/data/train.parquet VAL_FILES=$miniature_assets/data/test.parquet
export NNODES=1 N_GPUS_PER_NODE=1 PRM_NNODES=1 PRM_GPUS_PER_NODE=1

MINIATURE_ARGS=(
    trainer.device=cpu
    data.train_batch_size=16
    data.max_prompt_length=32
    data.max_response_length=64
    actor_rollout_ref.model.enable_gradient_checkpointing=False
    actor_rollout_ref.actor.optim.lr=5e-5
    actor_rollout_ref.actor.ppo_mini_batch_size=16
    actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype=float32
    actor_rollout_ref.ref.fsdp_config.model_dtype=float32
    actor_rollout_ref.ref.fsdp_config.mixed_precision.param_dtype=float32
    actor_rollout_ref.rollout.dtype=float32
    actor_rollout_ref.rollout.n=8
    actor_rollout_ref.rollout.tensor_model_parallel_size=1
    actor_rollout_ref.rollout.max_num_seqs=256
    actor_rollout_ref.rollout.cpu_kvcache_gib=0.25
    actor_rollout_ref.rollout.val_kwargs.do_sample=True
    actor_rollout_ref.rollout.val_kwargs.temperature=1.0
    actor_rollout_ref.rollout.val_kwargs.n=4
    reward_model.dtype=float32
    reward_model.max_num_seqs=256
    reward_model.cpu_kvcache_gib=0.25
    reward_model.num_verifier_workers=1
    'trainer.logger=["console","tensorboard"]'
    trainer.project_name=miniature
    trainer.resume_mode=disable
    trainer.total_epochs=100
    trainer.total_training_steps=100
    trainer.save_freq=50
    trainer.test_freq=20
)
