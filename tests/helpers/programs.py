# SPDX-License-Identifier: Apache-2.0
"""Runs the programs of Application/ as a user does: in a process of their own, or, many times, in this one."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

APPLICATION = Path(__file__).resolve().parents[2] / "Application"


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


def load_program(name: str) -> ModuleType:
    """Import a program as if its folder were the current one."""
    if str(APPLICATION) not in sys.path:
        sys.path.append(str(APPLICATION))
    spec = importlib.util.spec_from_file_location(f"application_{name}", APPLICATION / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class Program:
    """A program, run in this process."""

    def __init__(self, name: str, capsys: pytest.CaptureFixture[str]) -> None:
        self._module = load_program(name)
        self._run = sys.modules["prm_tools.program"].run_program
        self._capsys = capsys

    def __call__(self, *arguments: object) -> Ended:
        self._capsys.readouterr()
        try:
            code = self._run(self._module.main, self._module.build_parser(), [str(each) for each in arguments])
        except SystemExit as ended:  # argparse
            code = int(ended.code or 0)
        shown = self._capsys.readouterr()
        return Ended(code, shown.out, shown.err)


def start_program(name: str, *arguments: object, folder: Path = APPLICATION.parent) -> subprocess.Popen[str]:
    """Start a program in a process of its own; from the folder above its own it is called `Application/NAME.py`."""
    path = f"{name}.py" if folder == APPLICATION else str(APPLICATION / f"{name}.py")
    return subprocess.Popen(
        [sys.executable, path, *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any] | str]) -> Path:
    """Write rows; a text is written as a line of its own, whatever it is."""
    lines = (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
