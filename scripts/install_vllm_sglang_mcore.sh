#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs the GPU stack (CUDA 13): torch, vLLM and the rest into the active environment, SGLang into one of its own.
#
#   USE_MEGATRON=1|0   also Megatron-core (default 1)
#   USE_SGLANG=1|0     also an SGLang server in .venv-sglang: it pins another torch than vLLM (default 1)
#   PYTHON=...         the interpreter to install into (default: the active environment's python3)
#   TORCH_INDEX=URL    an extra wheel index that holds the wanted build of torch
#   DRY_RUN=1          only print the commands
set -euo pipefail

repo=$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")
use_megatron=${USE_MEGATRON:-1}
use_sglang=${USE_SGLANG:-1}
python=${PYTHON:-python3}
# shellcheck source=scripts/environment.sh
source "$repo/scripts/environment.sh"

run() {
    echo "+ $*"
    [[ ${DRY_RUN:-0} == 1 ]] || "$@"
}

pip_install() {
    run "$python" -m pip --disable-pip-version-check --no-input install -qq "$@"
}

[[ $use_megatron =~ ^[01]$ ]] || fail "USE_MEGATRON=$use_megatron: allowed are 0 and 1"
[[ $use_sglang =~ ^[01]$ ]] || fail "USE_SGLANG=$use_sglang: allowed are 0 and 1"
"$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null ||
    fail "PYTHON=$python: needs Python 3.11 or 3.12; activate an environment with one, or name it with PYTHON=..."
if ! "$python" -c 'import sys; sys.exit(sys.prefix == sys.base_prefix and "CONDA_PREFIX" not in __import__("os").environ)'; then
    [[ ${DRY_RUN:-0} == 1 ]] || fail "no environment is active; make one first: bash scripts/setup_env.sh"
fi

pip_install ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} -r "$repo/requirements/torch.txt"
pip_install -r "$repo/requirements/gpu.txt"
if [[ $use_megatron == 1 ]]; then
    pip_install --no-deps -r "$repo/requirements/megatron.txt"
fi
if [[ $use_sglang == 1 ]]; then
    run env VERL_ENV=gpu PYTHON="$python" bash "$repo/scripts/setup_sglang_env.sh"
fi
run "$python" -c 'import torch, transformers, vllm; print("torch", torch.__version__, "| transformers", transformers.__version__, "| vllm", vllm.__version__)'
