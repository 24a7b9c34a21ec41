# SPDX-License-Identifier: Apache-2.0
"""Dockerfiles pass hadolint and keep the habits it does not check: pinned base, no root, clean layers."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture.sources import ROOT

DOCKERFILES = sorted((ROOT / "docker").glob("Dockerfile.*"))


def instructions(path: Path) -> list[tuple[str, str]]:
    """Instructions as `(NAME, rest)`, continued lines joined, comments left out."""
    lines = [line for line in path.read_text().splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(line.split(None, 1)[0].upper(), line.split(None, 1)[1]) for line in joined.splitlines()]


def test_both_images_are_there() -> None:
    assert [path.name for path in DOCKERFILES] == ["Dockerfile.cpu", "Dockerfile.cuda"]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_is_content(path: Path) -> None:
    program = Path(sys.executable).with_name("hadolint")
    assert program.exists(), f"{program} is missing: bash scripts/setup_env.sh installs it"
    done = subprocess.run([program, "--no-color", path], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_base_image_is_pinned_to_a_full_version(path: Path) -> None:
    bases = [rest for name, rest in instructions(path) if name == "FROM"]
    assert bases
    for base in bases:
        assert re.search(r":\d+\.\d+\.\d+-|@sha256:[0-9a-f]{64}", base), f"{base} does not name a patch version"


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_runs_as_an_ordinary_user(path: Path) -> None:
    users = [rest for name, rest in instructions(path) if name == "USER"]
    assert users
    assert users[-1] not in ("root", "0")


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_copied_files_belong_to_the_user_and_none_is_downloaded(path: Path) -> None:
    assert not [rest for name, rest in instructions(path) if name == "ADD"]
    for name, rest in instructions(path):
        assert name != "COPY" or rest.startswith("--chown="), rest
        assert name != "RUN" or not re.search(r"\b(curl|wget)\b", rest), rest


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_apt_leaves_nothing_behind(path: Path) -> None:
    for name, rest in instructions(path):
        if name == "RUN" and "apt-get install" in rest:
            assert "--no-install-recommends" in rest
            assert "rm -rf /var/lib/apt/lists/*" in rest


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_scripts_named_in_the_image_exist(path: Path) -> None:
    text = " ".join(rest for name, rest in instructions(path) if name in ("RUN", "CMD", "ENTRYPOINT"))
    named = set(re.findall(r"scripts/[\w./-]+\.sh", text))
    assert named
    assert not [name for name in named if not (ROOT / name).is_file()]


def test_context_leaves_out_environments_and_results() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert {".git", ".venv", "outputs", "wandb"} <= set(ignored)
