#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The whole framework, small, on a machine without a GPU: environment, tiny policy and PRM trained from nothing
# (cached), then the real examples/grpo_trainer/qwen_reasonflux_dapo.sh with Ray, vLLM, a served PRM and FSDP2.
#
#   QUICKSTART_ARGS="trainer.total_training_steps=5"   further KEY=VALUE arguments of the trainer; they win
#   QUICKSTART_DIR=outputs/quickstart                  where results go
#   QUICKSTART_ASSETS=.cache/miniature                 where the tiny models and their data are kept
#   VERL_VENV=.venv                                    environment folder
set -euo pipefail

repo=$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")
cd "$repo"
venv=${VERL_VENV:-$repo/.venv}
bash scripts/setup_env.sh "$venv"
export PATH="$venv/bin:$PATH"

# One thread per process: on few cores two OpenMP threads beside another process were measured 35 times slower.
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
export RAY_USAGE_STATS_ENABLED=0 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1

assets=${QUICKSTART_ASSETS:-$repo/.cache/miniature}
bash recipe/miniature/make_assets.sh "$assets"

export OUTPUT_DIR=${QUICKSTART_DIR:-outputs/quickstart}
# a second run starts anew; assets and environment stay
rm -rf "$OUTPUT_DIR"/{metrics.jsonl,rollouts,validation,checkpoints,hf,tensorboard,wandb}
source recipe/miniature/settings.sh "$assets"

# shellcheck disable=SC2086 # QUICKSTART_ARGS holds several arguments
bash examples/grpo_trainer/qwen_reasonflux_dapo.sh "${MINIATURE_ARGS[@]}" ${QUICKSTART_ARGS:-}
