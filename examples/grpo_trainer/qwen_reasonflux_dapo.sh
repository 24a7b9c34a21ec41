#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# GRPO on DAPO-Math: Qwen2.5-7B-Instruct, step rewards of ReasonFlux-PRM-7B blended with the rule reward.
# One node of 8 GPUs: 6 for the policy, 2 for the PRM.
#
# Paths and sizes may be set in the environment; every KEY=VALUE argument wins over the values below:
#   MODEL_PATH=/models/policy bash examples/grpo_trainer/qwen_reasonflux_dapo.sh trainer.total_training_steps=100
set -euo pipefail

REPO="$(cd -P "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
export PYTHONPATH="$REPO${PYTHONPATH:+:$PYTHONPATH}"

MODEL_PATH="${MODEL_PATH:-Qwen/Qwen2.5-7B-Instruct}"
PRM_PATH="${PRM_PATH:-Gen-Verse/ReasonFlux-PRM-7B}"
TRAIN_FILES="${TRAIN_FILES:-$HOME/data/dapo/train.parquet}"
VAL_FILES="${VAL_FILES:-$HOME/data/dapo/test.parquet}"
NNODES="${NNODES:-1}"
N_GPUS_PER_NODE="${N_GPUS_PER_NODE:-6}"
PRM_NNODES="${PRM_NNODES:-$NNODES}"
PRM_GPUS_PER_NODE="${PRM_GPUS_PER_NODE:-2}"
PROJECT_NAME="${PROJECT_NAME:-reasonflux_prm}"
EXPERIMENT_NAME="${EXPERIMENT_NAME:-qwen_reasonflux_dapo}"
OUTPUT_DIR="${OUTPUT_DIR:-outputs/$EXPERIMENT_NAME}"

python3 -m verl.trainer.main_ppo \
    data.train_files="$TRAIN_FILES" \
    data.val_files="$VAL_FILES" \
    data.train_batch_size=32 \
    data.max_prompt_length=512 \
    data.max_response_length=16384 \
    data.filter_overlong_prompts=True \
    actor_rollout_ref.model.path="$MODEL_PATH" \
    actor_rollout_ref.actor.optim.lr=1e-6 \
    actor_rollout_ref.actor.ppo_mini_batch_size=32 \
    actor_rollout_ref.actor.use_kl_loss=True \
    actor_rollout_ref.actor.kl_loss_coef=0.001 \
    actor_rollout_ref.actor.kl_loss_type=low_var_kl \
    actor_rollout_ref.actor.entropy_coeff=0 \
    actor_rollout_ref.rollout.name=vllm \
    actor_rollout_ref.rollout.n=6 \
    actor_rollout_ref.rollout.tensor_model_parallel_size=2 \
    actor_rollout_ref.rollout.gpu_memory_utilization=0.6 \
    reward_model.enable=True \
    reward_model.model.path="$PRM_PATH" \
    reward_model.enable_resource_pool=True \
    reward_model.nnodes="$PRM_NNODES" \
    reward_model.n_gpus_per_node="$PRM_GPUS_PER_NODE" \
    algorithm.adv_estimator=grpo \
    algorithm.use_kl_in_reward=False \
    trainer.critic_warmup=0 \
    trainer.logger='["console","wandb"]' \
    trainer.project_name="$PROJECT_NAME" \
    trainer.experiment_name="$EXPERIMENT_NAME" \
    trainer.output_dir="$OUTPUT_DIR" \
    trainer.rollout_data_dir="$OUTPUT_DIR/rollouts" \
    trainer.nnodes="$NNODES" \
    trainer.n_gpus_per_node="$N_GPUS_PER_NODE" \
    trainer.save_freq=20 \
    trainer.test_freq=20 \
    trainer.total_epochs=1 "$@"
