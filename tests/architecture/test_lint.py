# SPDX-License-Identifier: Apache-2.0
"""Linter, formatter and type checker, with the settings of pyproject.toml."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.architecture.sources import ROOT

COMMANDS = {
    "lint": ["ruff", "check", "--no-cache", "--output-format=concise", "."],
    "format": ["ruff", "format", "--no-cache", "--check", "."],
    "types": ["mypy"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_sources_pass(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *COMMANDS[name]], cwd=ROOT, capture_output=True, text=True, timeout=550
    )
    assert done.returncode == 0, f"{' '.join(COMMANDS[name])}\n{done.stdout[-6000:]}{done.stderr[-2000:]}"
