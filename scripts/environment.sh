# SPDX-License-Identifier: Apache-2.0
# What the scripts that make an environment share. Sourced, not called: the caller has set `repo`.
# shellcheck shell=bash

program=$(basename "$0" .sh)

fail() {
    echo "$program: $*" >&2
    exit 2
}

# Prints the comment lines at the head of the script that sources this.
usage() {
    sed -n '3,/^set /{/^#/s/^# \{0,1\}//p}' "$0" >&2
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

# Sets VERL_ENV to gpu where an NVIDIA driver answers, else to cpu, unless it is set.
choose_stack() {
    if [[ -z ${VERL_ENV:-} ]]; then
        if [[ -e /proc/driver/nvidia/version ]] || nvidia-smi -L >/dev/null 2>&1; then VERL_ENV=gpu; else VERL_ENV=cpu; fi
    fi
    [[ $VERL_ENV == cpu || $VERL_ENV == gpu ]] || fail "VERL_ENV=$VERL_ENV: allowed are cpu and gpu"
}

step() {
    local name=$1 started=$SECONDS
    shift
    echo "$program: $name ..."
    "$@" || fail "step '$name' failed, see above. Mend the cause and call the same command again."
    echo "$program: $name done in $((SECONDS - started)) s"
}

make_venv() {
    "$1" -m venv "$2" || fail "$1 cannot make environments; on Debian: apt install $(basename "$1")-venv"
}

# begin_environment DIR WANTED: one call at a time; ends the script where DIR was made from WANTED already, else makes
# an empty environment there. `install` and `end_environment` then work on it.
begin_environment() {
    local wanted=$2 python
    venv=$1
    stamp=$venv/.verl-requirements
    mkdir -p "$venv"
    if command -v flock >/dev/null; then # two calls at once: the second waits, then finds the stamp
        exec 9>"$venv/.setup.lock"
        flock -w 1800 9 || fail "waited 30 minutes for another $program on $venv"
    fi
    if [[ -x $venv/bin/python && $(cat "$stamp" 2>/dev/null) == "$wanted" ]]; then
        exit 0
    fi
    rm -f "$stamp"
    started=$SECONDS
    python=$(find_python) || exit 2
    step "environment $venv on $("$python" -V 2>&1)" make_venv "$python" "$venv"
}

# install NAME ARGUMENTS...: a step of pip.
install() {
    local name=$1
    shift
    step "$name" "$venv/bin/python" -m pip --disable-pip-version-check --no-input install -qq "$@"
}

# end_environment WANTED: notes what the environment was made from, so that the next call ends at once.
end_environment() {
    echo "$1" >"$stamp"
    echo "$program: ready in $((SECONDS - started)) s"
}
