#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Makes the environment of SGLang's server: `bash scripts/setup_sglang_env.sh [DIR]` (default .venv-sglang in the repository).
# It pins another torch than vLLM, so that it cannot share .venv; rollout.name=sglang looks for it there, or where
# VERL_SGLANG_PYTHON or actor_rollout_ref.rollout.sglang.python names its bin/python. A second call returns at once.
#
#   PYTHON=/path/to/python   the interpreter to build on (default: python3.11, else python3.12)
#   VERL_ENV=cpu|gpu         default: gpu where an NVIDIA driver answers, else cpu
#   TORCH_INDEX=URL          an extra wheel index that holds the wanted build of torch
set -euo pipefail

repo=$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")
# shellcheck source=scripts/environment.sh
source "$repo/scripts/environment.sh"
[[ $# -le 1 && ${1:-} != -* ]] || usage
venv=${1:-${SGLANG_VENV:-$repo/.venv-sglang}}
choose_stack

wanted="$VERL_ENV $(cat "$repo"/requirements/{torch,sglang,sglang-cpu}.txt | sha256sum | cut -d' ' -f1)"
begin_environment "$venv" "$wanted"
if [[ $VERL_ENV == cpu ]]; then
    sglang=$(grep '^sglang==' "$repo/requirements/sglang.txt")
    install "torch" ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} -r "$repo/requirements/torch.txt"
    install "packages" -c "$repo/requirements/torch.txt" -r "$repo/requirements/sglang-cpu.txt"
    install "SGLang" --no-deps "$sglang"
else
    install "GPU stack" ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} -r "$repo/requirements/sglang.txt"
fi
step "version test" "$venv/bin/python" -c \
    'import importlib.metadata as m; print("setup_sglang_env: sglang", m.version("sglang"), "torch", m.version("torch"))'
end_environment "$wanted"
