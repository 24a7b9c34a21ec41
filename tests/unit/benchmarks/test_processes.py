# SPDX-License-Identifier: Apache-2.0
"""Programs that benchmarks start: their failure is told with the end of their log, and nothing of them stays."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
from pathlib import Path
from threading import Thread

import pytest

from benchmarks.processes import make_environment, run_to_end


def test_a_program_runs_with_its_variables(tmp_path: Path) -> None:
    code = "import os, pathlib; pathlib.Path('seen').write_text(os.environ['GIVEN'])"
    run_to_end([sys.executable, "-c", code], tmp_path / "log", 60, {"GIVEN": "x"}, tmp_path)
    assert (tmp_path / "seen").read_text() == "x"


def test_a_failure_is_told_with_the_log(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)ended with 3:.*the reason"):
        run_to_end([sys.executable, "-c", "print('the reason'); exit(3)"], tmp_path / "log", 60, {}, tmp_path)


def test_what_takes_too_long_is_ended_with_its_children(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    # the child alone keeps the pipe open: its end is seen as the end of the file
    code = "import subprocess, sys; subprocess.Popen(['sleep', '600'], stdout=open(sys.argv[1], 'w')).wait()"
    ended = Thread(target=pipe.read_bytes, daemon=True)
    ended.start()
    with pytest.raises(subprocess.TimeoutExpired):
        run_to_end([sys.executable, "-c", code, str(pipe)], tmp_path / "log", 4, {}, tmp_path)
    with contextlib.suppress(OSError):  # had it no time to open the pipe, this does; else nobody reads it any more
        os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
    ended.join(timeout=30)
    assert not ended.is_alive()


def test_an_environment_that_is_there_is_taken(tmp_path: Path) -> None:
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("# nothing\n")
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    (tmp_path / "venv" / ".made-from").write_text(hashlib.sha256(requirements.read_bytes()).hexdigest())
    assert make_environment(tmp_path / "venv", requirements) == python
