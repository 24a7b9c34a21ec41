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
if [[ $# -gt 1 || ${1:-} == -* ]]; then
    sed -n '3,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    exit 2
fi
venv=${1:-${SGLANG_VENV:-$repo/.venv-sglang}}
stamp=$venv/.verl-requirements
pip=("$venv/bin/python" -m pip --disable-pip-version-check --no-input)

fail() {
    echo "setup_sglang_env: $*" >&2
    exit 2
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3.12 python3}; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    fail "no Python 3.11 or 3.12 found (tried ${PYTHON:-python3.11, python3.12, python3}). Install one, or name it with PYTHON=..."
}

has_nvidia_driver() {
    [[ -e /proc/driver/nvidia/version ]] || nvidia-smi -L >/dev/null 2>&1
}

step() {
    local name=$1 started=$SECONDS
    shift
    echo "setup_sglang_env: $name ..."
    "$@" || fail "step '$name' failed, see above. Mend the cause and call the same command again."
    echo "setup_sglang_env: $name done in $((SECONDS - started)) s"
}

if [[ -z ${VERL_ENV:-} ]]; then
    if has_nvidia_driver; then VERL_ENV=gpu; else VERL_ENV=cpu; fi
fi
[[ $VERL_ENV == cpu || $VERL_ENV == gpu ]] || fail "VERL_ENV=$VERL_ENV: allowed are cpu and gpu"

mkdir -p "$venv"
if command -v flock >/dev/null; then # two calls at once: the second waits, then finds the stamp
    exec 9>"$venv/.setup.lock"
    flock -w 1800 9 || fail "waited 30 minutes for another setup_sglang_env on $venv"
fi

sglang=$(grep '^sglang==' "$repo/requirements/sglang.txt")
wanted="$VERL_ENV $(cat "$repo"/requirements/{torch,sglang,sglang-cpu}.txt | sha256sum | cut -d' ' -f1)"
if [[ -x $venv/bin/python && $(cat "$stamp" 2>/dev/null) == "$wanted" ]]; then
    exit 0
fi

rm -f "$stamp"
started=$SECONDS
python=$(find_python) || exit 2
step "environment $venv on $("$python" -V 2>&1)" "$python" -m venv "$venv"
if [[ $VERL_ENV == cpu ]]; then
    step "torch" "${pip[@]}" install -qq ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} -r "$repo/requirements/torch.txt"
    step "packages" "${pip[@]}" install -qq -c "$repo/requirements/torch.txt" -r "$repo/requirements/sglang-cpu.txt"
    step "SGLang" "${pip[@]}" install -qq --no-deps "$sglang"
else
    step "GPU stack" "${pip[@]}" install -qq ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} -r "$repo/requirements/sglang.txt"
fi
step "version test" "$venv/bin/python" -c \
    'import importlib.metadata as m; print("setup_sglang_env: sglang", m.version("sglang"), "torch", m.version("torch"))'
echo "$wanted" >"$stamp"
echo "setup_sglang_env: ready in $((SECONDS - started)) s"
