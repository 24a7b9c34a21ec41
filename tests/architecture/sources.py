# SPDX-License-Identifier: Apache-2.0
"""Reads the repository's sources for the checks of this folder: which files there are and what they import."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Folders that hold no source: environments, caches and what runs leave behind.
SKIPPED = {".git", ".venv", ".venv-sglang", "__pycache__", ".cache", "outputs", "wandb", "build", "dist", "multirun"}
HIDDEN_KEPT = {".ci", ".gitignore", ".dockerignore", ".hadolint.yaml"}


@dataclass(frozen=True)
class Import:
    """One imported module, as written at one line."""

    module: str
    line: int


def is_source_folder(path: Path) -> bool:
    """Tell whether a folder is walked into."""
    if path.name in SKIPPED or path.name.endswith(".egg-info"):
        return False
    return not path.name.startswith(".") or path.name in HIDDEN_KEPT


def walk(folder: Path) -> Iterator[Path]:
    """Yield every source file below a folder, sorted. Links are left out: what they show lies elsewhere in the tree."""
    for path in sorted(folder.iterdir()):
        if path.is_symlink():
            continue
        if path.is_dir():
            if is_source_folder(path):
                yield from walk(path)
        elif not path.name.startswith(".") or path.name in HIDDEN_KEPT:
            yield path


@cache
def all_files() -> tuple[Path, ...]:
    """Every source file of the repository."""
    return tuple(walk(ROOT))


def python_files(*folders: str) -> list[Path]:
    """Python files below the given top-level folders (all of the repository if none is given)."""
    return [
        path
        for path in all_files()
        if path.suffix == ".py" and (not folders or path.relative_to(ROOT).parts[0] in folders)
    ]


def label(path: Path) -> str:
    """Path relative to the repository, with forward slashes."""
    return path.relative_to(ROOT).as_posix()


@cache
def parse(path: Path) -> ast.Module:
    """Parse one Python file."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def module_name(path: Path) -> str:
    """Dotted name of a module of this repository."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def resolve_from(path: Path, node: ast.ImportFrom) -> list[str]:
    """Name the modules of a `from ... import ...`; a name that is itself a module of this repository counts as one."""
    base = node.module or ""
    if node.level:
        package = module_name(path).split(".")
        package = package if path.name == "__init__.py" else package[:-1]
        base = ".".join([*package[: len(package) - node.level + 1], *([base] if base else [])])
    return [f"{base}.{alias.name}" if find_module(f"{base}.{alias.name}") else base for alias in node.names]


@cache
def find_module(name: str) -> Path | None:
    """File of a module of this repository, None for anything else."""
    path = ROOT.joinpath(*name.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


@cache
def imports_of(path: Path) -> tuple[Import, ...]:
    """Every import statement of a file, wherever it stands."""
    found = []
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            found += [Import(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [Import(name, node.lineno) for name in resolve_from(path, node)]
    return tuple(found)


@cache
def dotted_references_of(path: Path) -> tuple[Import, ...]:
    """Modules of `verl` that a file names in a string: how registries load what they may not import."""
    found = []
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("verl."):
            name = node.value.split(":")[0]
            if find_module(name):
                found.append(Import(name, node.lineno))
    return tuple(found)
