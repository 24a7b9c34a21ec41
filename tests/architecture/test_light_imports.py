# SPDX-License-Identifier: Apache-2.0
"""What must be importable without the heavy packages, each in an interpreter of its own."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.architecture.sources import ROOT, imports_of, label, module_name, python_files
from tests.architecture.test_floors import room_of

HEAVY = ("torch", "ray", "vllm", "transformers", "tensordict", "pandas", "pyarrow", "datasets", "scipy", "matplotlib")
# Rooms that may need Ray or vLLM; everything else must load on a machine that has neither.
RAY_ROOMS = ("single_controller", "workers", "trainer")

REFUSING = """
import importlib, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {refused!r}:
            raise ImportError(f"refused: {{name}}")
sys.meta_path.insert(0, Refuse())
for name in {modules!r}:
    importlib.import_module(name)
"""


def run_python(source: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", source], cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("module", ["verl", "verl.config", "verl.utils.errors"])
def test_loads_nothing_heavy(module: str) -> None:
    done = run_python(f"import json, sys, {module}; print(json.dumps(sorted(sys.modules)))")
    assert done.returncode == 0, done.stderr
    loaded = {name.split(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}
    assert not loaded & set(HEAVY)


def test_floors_one_to_three_load_without_ray_and_vllm() -> None:
    def needs_a_server(path: object) -> bool:
        return any(each.module.split(".")[0] in ("vllm", "sglang", "megatron") for each in imports_of(path))

    modules = [
        module_name(path)
        for path in python_files("verl")
        if room_of(module_name(path)) not in RAY_ROOMS
        and not label(path).startswith("verl/engines/megatron/")
        and not needs_a_server(path)
    ]
    assert len(modules) > 10
    done = run_python(REFUSING.format(refused=("ray", "vllm", "sglang", "megatron"), modules=modules))
    assert done.returncode == 0, done.stderr[-3000:]
