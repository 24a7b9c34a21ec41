#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Makes the miniature from nothing: data, a tiny policy warmed up by supervised fine-tuning on demonstrations with wrong
# steps, a tiny PRM trained on labelled steps. `bash recipe/miniature/make_assets.sh DIR`; a second call returns at once.
set -euo pipefail

assets=${1:?usage: make_assets.sh DIR}
repo=$(dirname "$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")")
cd "$repo"
sources=(recipe/miniature/{problems,data,tokenizer,models,probes}.py recipe/miniature/make_assets.sh)
wanted=$(cat "${sources[@]}" | sha256sum | cut -d' ' -f1)
if [[ $(cat "$assets/.made-from" 2>/dev/null) == "$wanted" ]]; then
    echo "miniature: assets in $assets are up to date"
    exit 0
fi
rm -rf "$assets"/{data,start,sft,prm_training,policy,prm} "$assets/.made-from"
mkdir -p "$assets"

echo "miniature: data and random models"
python3 -m recipe.miniature.data --out "$assets/data" --seed 0
python3 -m recipe.miniature.models --out "$assets/start" --seed 0

# two ranks: nothing else runs yet, so both cores are free
common=(
    fsdp_config.mixed_precision.param_dtype=float32
    model.enable_gradient_checkpointing=False
    trainer.device=cpu
    trainer.n_gpus_per_node=2
    trainer.total_epochs=10
    optim.betas='[0.9,0.95]'
    optim.lr_warmup_steps=30
    optim.lr_scheduler_type=cosine
)

echo "miniature: supervised fine-tuning of the policy"
python3 -m verl.trainer.sft_trainer "${common[@]}" \
    model.path="$assets/start/policy_init" \
    data.train_files="$assets/data/sft.parquet" \
    data.train_batch_size=64 \
    data.max_length=128 \
    optim.lr=2e-3 \
    trainer.total_training_steps=500 \
    trainer.default_local_dir="$assets/sft"
mv "$assets/sft/hf" "$assets/policy"

echo "miniature: PRM on labelled steps; like the published PRMs it starts from a language model, here the policy"
python3 -m recipe.miniature.models --out "$assets/start" --policy "$assets/policy" --seed 0
python3 -m verl.trainer.prm_trainer "${common[@]}" \
    model.path="$assets/start/prm_start" \
    data.train_batch_size=32 \
    data.train_files="$assets/data/prm.parquet" \
    data.val_files="$assets/data/prm_test.parquet" \
    data.max_length=160 \
    optim.lr=1e-3 \
    optim.min_lr_ratio=0.1 \
    trainer.total_training_steps=1600 \
    trainer.test_freq=400 \
    trainer.default_local_dir="$assets/prm_training"
mv "$assets/prm_training/hf" "$assets/prm"
python3 -m recipe.miniature.probes --out "$assets/prm" --seed 0
echo "$wanted" >"$assets/.made-from"
