# SPDX-License-Identifier: Apache-2.0
"""Programs that a benchmark starts: run to their end and ended with all they started; environments made for them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

_GRACE_S = 30.0
_LOG_CHARS = 4000


def run_to_end(call: Sequence[str], log: Path, limit_s: float, environment: Mapping[str, str], cwd: Path) -> None:
    """Run a program; whatever it started is ended with it.

    Args:
        call: Program and arguments.
        log: File for everything it prints.
        limit_s: Longest time, seconds.
        environment: Variables on top of this process's own.
        cwd: Folder in which it runs.

    Raises:
        RuntimeError: It failed; the message ends with the end of its log.
        TimeoutExpired: It took longer.
    """
    kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with log.open("wb") as sink:
        process = subprocess.Popen(
            call, cwd=cwd, env=kept | environment, stdout=sink, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(limit_s)
        finally:
            _end(process)
    if code:
        tail = log.read_text(encoding="utf-8", errors="replace")[-_LOG_CHARS:]
        raise RuntimeError(f"{call[0]} ended with {code}:\n{tail}")


def make_environment(folder: Path, requirements: Path) -> Path:
    """Make a Python environment, or find that it is there.

    Args:
        folder: Where.
        requirements: What it holds; a change of this file installs anew.

    Returns:
        Its interpreter.

    Raises:
        CalledProcessError: It cannot be made.
    """
    wanted = hashlib.sha256(requirements.read_bytes()).hexdigest()
    stamp, python = folder / ".made-from", folder / "bin" / "python"
    if python.exists() and stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return python
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    index = ["--extra-index-url", os.environ["TORCH_INDEX"]] if os.environ.get("TORCH_INDEX") else []
    subprocess.run([str(python), "-m", "pip", "install", "-qq", *index, "-r", str(requirements)], check=True)
    stamp.write_text(wanted, encoding="utf-8")
    return python


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a program that still runs, politely first, so that it can stop its own; then what is left in its group."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_S)
    with contextlib.suppress(ProcessLookupError):  # nothing is left
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
