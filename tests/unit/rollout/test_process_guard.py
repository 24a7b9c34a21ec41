# SPDX-License-Identifier: Apache-2.0
"""Nothing that runs behind the guard outlives the process that wanted it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from verl.rollout import process_guard

GUARD = [sys.executable, process_guard.__file__, "5"]
# a command with a child of its own, which would go on for ever
FAMILY = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])"


def start(program: str) -> subprocess.Popen[bytes]:
    command = [*GUARD, sys.executable, "-c", program]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)


def family_of(guard: subprocess.Popen[bytes], size: int) -> list[psutil.Process]:
    deadline = time.monotonic() + 30
    while len(found := psutil.Process(guard.pid).children(recursive=True)) < size:
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
    return found


def assert_gone(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=20)
    # a killed orphan may stay a zombie where nobody takes in orphans
    assert not [each for each in alive if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]


def test_the_whole_family_ends_when_the_pipe_closes() -> None:
    guard = start(f"{FAMILY}; time.sleep(600)")
    family = family_of(guard, 2)
    assert guard.stdin is not None
    guard.stdin.close()
    guard.wait(timeout=30)
    assert_gone(family)


def test_the_family_ends_with_a_holder_that_is_killed(tmp_path: Path) -> None:
    holder_program = (
        "import subprocess, sys, time\n"
        f"command = {[*GUARD, sys.executable, '-c', f'{FAMILY}; time.sleep(600)']!r}\n"
        "subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)\n"
        "time.sleep(600)"
    )
    holder = subprocess.Popen([sys.executable, "-c", holder_program])
    family = family_of(holder, 3)
    holder.kill()
    holder.wait()
    assert_gone(family)


def test_a_command_that_ends_leaves_nobody_behind() -> None:
    guard = start(f"{FAMILY}; time.sleep(1); sys.exit(3)")
    family = family_of(guard, 2)
    guard.wait(timeout=30)
    assert_gone(family)
    assert guard.stderr is not None
    assert b"ended with exit code 3" in guard.stderr.read()


@pytest.mark.parametrize("ends", ["by itself", "with the pipe"])
def test_its_files_in_shared_memory_go_and_those_of_others_stay(ends: str) -> None:
    if not os.path.isdir("/dev/shm"):
        pytest.skip("needs /dev/shm")
    name = f"/dev/shm/verl-test-{os.getpid()}-"
    program = (
        "import mmap, pathlib, sys, time\n"
        "def mapped(path):\n"
        "    with open(path, 'r+b') as file:\n"
        "        return mmap.mmap(file.fileno(), 8)\n"
        f"older = mapped('{name}older')\n"
        f"pathlib.Path('{name}own').write_bytes(bytes(8))\n"
        f"own = mapped('{name}own')\n"
        f"pathlib.Path('{name}unmapped').write_bytes(bytes(8))\n"
        f"time.sleep({4 if ends == 'by itself' else 600})\n"
    )
    Path(f"{name}older").write_bytes(bytes(8))
    try:
        guard = start(program)
        deadline = time.monotonic() + 30
        while not Path(f"{name}unmapped").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert Path(f"{name}own").exists()
        if ends == "with the pipe":
            assert guard.stdin is not None
            guard.stdin.close()
        guard.wait(timeout=30)
        left = sorted(path.name.rpartition("-")[2] for path in Path("/dev/shm").glob(f"{Path(name).name}*"))
        assert left == ["older", "unmapped"]
    finally:
        for each in Path("/dev/shm").glob(f"{Path(name).name}*"):
            each.unlink()


@pytest.mark.parametrize("code", [0, 5])
def test_run_by_hand_it_gives_the_exit_code_of_its_command(code: int) -> None:
    guard = subprocess.Popen([*GUARD, sys.executable, "-c", f"raise SystemExit({code})"], stdin=subprocess.PIPE)
    assert guard.wait(timeout=30) == code
