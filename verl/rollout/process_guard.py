# SPDX-License-Identifier: Apache-2.0
"""Runs a command that must not outlive the process that wanted it: `python process_guard.py GRACE_S COMMAND...`.

The guard leads a process group of its own. It ends the whole group when the command ends, and when its own standard
input closes: the other end of that pipe is held by the process that wanted the command, and the kernel closes it
whatever way that process dies. A command that is asked to end has GRACE_S seconds to do so. Files that the group has
made in shared memory go with it: a process that is killed takes none of its own away. Loads nothing but the standard
library, and does not know what it runs.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

_SHARED_MEMORY = "/dev/shm"
_LOOK_S = 2.0


class SharedMemory:
    """Files in shared memory that appeared after the guard began and that processes of its group have mapped.

    Example:
        >>> files = SharedMemory()
        >>> files.look()
        >>> files.remove()
    """

    def __init__(self) -> None:
        """Note what is there already, which is somebody else's."""
        self._known = {inode for inode, _ in _shared_files()}
        self._own: set[str] = set()

    def look(self) -> None:
        """Add the files that the group has mapped now; names are of no use, a semaphore is mapped under another one."""
        mapped = {inode for process in os.listdir("/proc") if process.isdigit() for inode in _mapped_by(process)}
        self._own = self._own | {path for inode, path in _shared_files() if inode in mapped - self._known}

    def watch(self) -> None:
        """Look again and again: a command that dies says nothing before."""
        while True:
            self.look()
            time.sleep(_LOOK_S)

    def remove(self) -> None:
        """Remove what is left of them."""
        for path in self._own:
            with contextlib.suppress(OSError):
                os.unlink(path)


def _shared_files() -> list[tuple[int, str]]:
    if not os.path.isdir(_SHARED_MEMORY):
        return []
    with os.scandir(_SHARED_MEMORY) as entries:
        return [(entry.inode(), entry.path) for entry in entries]


def _mapped_by(process: str) -> set[int]:
    """Inodes in shared memory that a process of this group has mapped."""
    try:
        if os.getpgid(int(process)) != os.getpgrp():
            return set()
        with open(f"/proc/{process}/maps") as maps:  # address, rights, offset, device, inode, path
            return {int(line.split(maxsplit=5)[4]) for line in maps if f" {_SHARED_MEMORY}/" in line}
    except OSError:
        return set()  # it has just ended


def run_guarded(command: Sequence[str], grace_s: float, files: SharedMemory) -> int:
    """Run a command to its end, or to the end of standard input.

    Args:
        command: Program and arguments.
        grace_s: Seconds between asking it to end and killing it.
        files: Gets to know those of the group.

    Returns:
        The command's exit code, as `subprocess` has it. The group is killed before the guard itself ends.
    """
    signal.signal(signal.SIGTERM, lambda *_: None)  # sent to the whole group: the command ends by it, then the guard
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    threading.Thread(target=_end_with_input, args=(child, grace_s, files), daemon=True).start()
    threading.Thread(target=files.watch, daemon=True).start()
    return child.wait()


def _end_with_input(child: subprocess.Popen[bytes], grace_s: float, files: SharedMemory) -> None:
    """Wait until nobody holds the other end of standard input any more, then end the command."""
    while os.read(0, 1 << 12):
        pass
    files.look()
    child.terminate()
    try:
        child.wait(grace_s)
    except subprocess.TimeoutExpired:
        child.kill()


def main(arguments: Sequence[str]) -> None:
    """Run, then kill whatever the command left behind, the guard included.

    Args:
        arguments: Grace in seconds, program, its arguments.
    """
    command, files = arguments[1:], SharedMemory()
    code = run_guarded(command, float(arguments[0]), files)
    files.remove()
    if os.getpgrp() == os.getpid():  # not when somebody runs it by hand, inside the group of a shell
        sys.stderr.write(f"process_guard: {command[0]} ended with exit code {code}\n")
        sys.stderr.flush()
        os.killpg(0, signal.SIGKILL)
    raise SystemExit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    main(sys.argv[1:])
