# SPDX-License-Identifier: Apache-2.0
"""Runs a command that must not outlive the process that wanted it: `python -m verl.rollout.process_guard COMMAND...`.

The guard leads a process group of its own. It ends the whole group when the command ends, and when its own standard
input closes: the other end of that pipe is held by the process that wanted the command, and the kernel closes it
whatever way that process dies. Loads nothing but the standard library, and does not know what it runs.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence

GRACE_S = 2.0
"""Seconds between asking a command to end and killing it."""


def run_guarded(command: Sequence[str]) -> int:
    """Run a command to its end, or to the end of standard input.

    Args:
        command: Program and arguments.

    Returns:
        The command's exit code, as `subprocess` has it. The group is killed before the guard itself ends.
    """
    signal.signal(signal.SIGTERM, lambda *_: None)  # sent to the whole group: the command ends by it, then the guard
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    threading.Thread(target=_end_with_input, args=(child,), daemon=True).start()
    return child.wait()


def _end_with_input(child: subprocess.Popen[bytes]) -> None:
    """Wait until nobody holds the other end of standard input any more, then end the command."""
    while os.read(0, 1 << 12):
        pass
    child.terminate()
    try:
        child.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        child.kill()


def main(command: Sequence[str]) -> None:
    """Run, then kill whatever the command left behind, the guard included.

    Args:
        command: Program and arguments.
    """
    code = run_guarded(command)
    if os.getpgrp() == os.getpid():  # not when somebody runs it by hand, inside the group of a shell
        sys.stderr.write(f"process_guard: {command[0]} ended with exit code {code}\n")
        sys.stderr.flush()
        os.killpg(0, signal.SIGKILL)
    raise SystemExit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    main(sys.argv[1:])
