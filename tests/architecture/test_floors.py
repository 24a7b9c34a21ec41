# SPDX-License-Identifier: Apache-2.0
"""Imports point downwards only, and heavy packages are imported where the plan of the house puts them."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.architecture.sources import ROOT, Import, dotted_references_of, imports_of, label, module_name, python_files

FLOORS = {
    "trainer": 5,
    "workers": 4,
    "report": 4,
    "engines": 3,
    "rewards": 3,
    "data": 3,
    "single_controller": 3,
    "algorithms": 2,
    "rollout": 2,
    "protocol": 1,
    "batch_schema": 1,
    "config": 1,
    "weight_sync": 1,
    "utils": 1,
}
# A room may not import its neighbours on the same floor. On the ground floor these lie a little lower than the rest.
ALLOWED_ON_THE_SAME_FLOOR = {
    ("batch_schema", "utils"),
    ("config", "utils"),
    ("protocol", "batch_schema"),
    ("protocol", "utils"),
    ("weight_sync", "utils"),
}
# Downwards, but still not to be known: the reason stands beside each.
FORBIDDEN_DOWNWARDS = {
    ("trainer", "engines"): "the trainer talks to worker groups, not to FSDP or Megatron",
    ("engines", "protocol"): "an engine takes tensors, not DataProto",
    ("engines", "config"): "an engine takes its own small dataclass, not the config tree",
    ("algorithms", "protocol"): "an estimator is a function of tensors",
    ("algorithms", "batch_schema"): "an estimator is a function of tensors",
    ("algorithms", "config"): "an estimator is a function of tensors and numbers",
    ("report", "rewards"): "the report reads a run folder and imports nothing that trains",
    ("report", "engines"): "the report reads a run folder and imports nothing that trains",
    ("report", "single_controller"): "the report reads a run folder and imports nothing that trains",
}
# Old names that users import: at most 20 lines each, exempt from the floors, imported by nothing inside.
FACES = (
    "verl/trainer/ppo/core_algos.py",
    "verl/trainer/ppo/reward.py",
    "verl/utils/dataset/rl_dataset.py",
    "verl/utils/reward_score/__init__.py",
    "verl/utils/reward_score.py",
    "verl/workers/fsdp_workers.py",
    "verl/workers/megatron_workers.py",
    "verl/workers/reward_manager.py",
    "verl/workers/reward_manager/__init__.py",
)
FACE_LINES = 20
# Where a heavy package may be imported, as patterns of paths; vLLM and SGLang in one file per room.
HEAVY = {
    "ray": ("verl/single_controller/*", "verl/workers/*", "verl/trainer/*"),
    "vllm": ("verl/rollout/vllm_engine.py", "verl/weight_sync/*vllm*.py", "verl/workers/*vllm*.py"),
    "sglang": (),  # it lives in an environment of its own and is spoken to over HTTP
    "megatron": ("verl/engines/megatron/*",),
    "peft": ("verl/engines/lora.py",),
    "omegaconf": ("verl/config/*", "verl/trainer/main_ppo.py", "verl/trainer/*main*.py"),
    "hydra": ("verl/config/*", "verl/trainer/*"),
}
BELOW_THE_CONFIG = ("torch", "ray", "vllm", "numpy", "pandas", "transformers", "tensordict", "pyarrow")


def room_of(module: str) -> str | None:
    """First part of a module name below `verl`, None for `verl` itself and for other packages."""
    parts = module.split(".")
    return parts[1] if parts[0] == "verl" and len(parts) > 1 else None


def is_face(path: Path) -> bool:
    return label(path) in FACES


def judge(room: str, other: str) -> str | None:
    """Say what is wrong with an import from one room into another, None if nothing is."""
    if room == other:
        return None
    if other not in FLOORS:
        return f"room {other!r} has no floor; give it one in FLOORS"
    if (room, other) in FORBIDDEN_DOWNWARDS:
        return FORBIDDEN_DOWNWARDS[room, other]
    if FLOORS[other] < FLOORS[room] or (room, other) in ALLOWED_ON_THE_SAME_FLOOR:
        return None
    return f"floor {FLOORS[room]} must not import floor {FLOORS[other]}"


def verl_imports(path: Path) -> list[Import]:
    return [each for each in (*imports_of(path), *dotted_references_of(path)) if room_of(each.module)]


@pytest.fixture(scope="module")
def verl_files() -> list[Path]:
    found = python_files("verl")
    assert found
    return found


def test_every_room_has_a_floor(verl_files: list[Path]) -> None:
    rooms = {room_of(module_name(path)) for path in verl_files} - {None}
    assert rooms <= set(FLOORS), f"rooms without a floor: {rooms - set(FLOORS)}"


def test_imports_point_downwards(verl_files: list[Path]) -> None:
    wrong = []
    for path in verl_files:
        room = room_of(module_name(path))
        if room is None or is_face(path):
            continue
        for each in verl_imports(path):
            fault = judge(room, room_of(each.module) or "")
            if fault:
                wrong.append(f"{label(path)}:{each.line} imports {each.module}: {fault}")
    assert not wrong, "\n".join(wrong)


def test_the_judge_knows_up_from_down() -> None:
    assert judge("trainer", "workers") is None
    assert judge("workers", "trainer") == "floor 4 must not import floor 5"
    assert judge("rewards", "engines") == "floor 3 must not import floor 3"
    assert judge("config", "utils") is None
    assert judge("utils", "config") is not None
    assert judge("algorithms", "protocol") is not None


def test_library_does_not_import_what_stands_on_it(verl_files: list[Path]) -> None:
    above = ("recipe", "Application", "examples", "benchmarks", "tests", "scripts")
    wrong = [
        f"{label(path)}:{each.line} imports {each.module}"
        for path in verl_files
        for each in imports_of(path)
        if each.module.split(".")[0] in above
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("package", sorted(HEAVY))
def test_heavy_package_stays_in_its_rooms(verl_files: list[Path], package: str) -> None:
    wrong = [
        f"{label(path)}:{each.line}"
        for path in verl_files
        for each in imports_of(path)
        if each.module.split(".")[0] == package and not any(fnmatch(label(path), where) for where in HEAVY[package])
    ]
    assert not wrong, f"{package} is imported outside {HEAVY[package]}: {wrong}"


def test_config_imports_nothing_heavy() -> None:
    wrong = [
        f"{label(path)}:{each.line} imports {each.module}"
        for path in python_files("verl")
        if room_of(module_name(path)) == "config"
        for each in imports_of(path)
        if each.module.split(".")[0] in BELOW_THE_CONFIG
    ]
    assert not wrong, "\n".join(wrong)


def test_faces_are_thin_and_not_used_inside(verl_files: list[Path]) -> None:
    faces = [path for path in verl_files if is_face(path)]
    thick = [label(path) for path in faces if len(path.read_text().splitlines()) > FACE_LINES]
    names = {module_name(path) for path in faces}
    users = [
        f"{label(path)}:{each.line} imports {each.module}"
        for path in verl_files
        for each in verl_imports(path)
        if each.module in names and not is_face(path)
    ]
    assert not thick, f"more than {FACE_LINES} lines: {thick}"
    assert not users, "\n".join(users)


def test_imports_within_a_file_are_absolute() -> None:
    wrong = [
        f"{label(path)}: relative import"
        for path in python_files("verl", "recipe", "Application")
        if any(line.lstrip().startswith("from .") for line in path.read_text().splitlines())
    ]
    assert not wrong, "\n".join(wrong)


def test_repository_root_is_found() -> None:
    assert (ROOT / "setup.py").is_file()
