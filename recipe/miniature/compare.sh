#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Trains every method with every seed from the same start, and writes table, numbers and plots:
#
#   bash recipe/miniature/compare.sh ASSETS OUT_DIR [--jobs 2] [--seeds 1 2 3] [--methods rule_only papo] [--steps 100]
#
# ASSETS is what make_assets.sh writes (made now where it is missing). A second call goes on where the first one ended.
# Wants the environment of scripts/setup_env.sh to be active.
set -euo pipefail

usage="usage: compare.sh ASSETS OUT_DIR [options; --help lists them]"
assets=$(readlink -m "${1:?$usage}")
out=$(readlink -m "${2:?$usage}")
shift 2
repo=$(dirname "$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")")
cd "$repo"

# One thread per process: on few cores two OpenMP threads beside another process were measured 35 times slower.
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
export RAY_USAGE_STATS_ENABLED=0 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1
export PYTHONPATH="$repo${PYTHONPATH:+:$PYTHONPATH}" # this folder's code, also where another one is installed

if [[ ! -e $assets/policy/config.json || ! -e $assets/prm/config.json ]]; then
    bash recipe/miniature/make_assets.sh "$assets"
fi
status=0
python3 -m recipe.miniature.compare "$assets" "$out" "$@" || status=$?
# a run that failed is no reason to hide the others; a command line that was refused (2) or an interruption is
if ((status <= 1)); then
    python3 -m recipe.miniature.report "$out" || status=1
fi
exit "$status"
