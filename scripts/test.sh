#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Environment, then the tests: `bash scripts/test.sh [pytest arguments]`. Linters and type check are tests as well
# (tests/architecture). VERL_VENV names another environment folder than .venv.
# `bash scripts/test.sh --sglang [pytest arguments]` makes SGLang's environment too and runs the tests that need it.
set -euo pipefail

repo=$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")
venv=${VERL_VENV:-$repo/.venv}
bash "$repo/scripts/setup_env.sh" "$venv"
if [[ ${1:-} == --sglang ]]; then
    shift
    bash "$repo/scripts/setup_sglang_env.sh"
    set -- -m sglang "$@"
fi

# One thread per process: on few cores two OpenMP threads beside another process were measured 35 times slower.
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
export VLLM_CPU_OMP_THREADS_BIND=nobind VLLM_CPU_KVCACHE_SPACE=${VLLM_CPU_KVCACHE_SPACE:-1}
# Nothing may call home from a test.
export RAY_USAGE_STATS_ENABLED=0 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1 HF_HUB_DISABLE_TELEMETRY=1 WANDB_MODE=offline

cd "$repo"
PATH=$venv/bin:$PATH exec "$venv/bin/python" -m pytest "$@"
