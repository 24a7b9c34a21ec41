# SPDX-License-Identifier: Apache-2.0
"""Runs a command that must not outlive the process that wanted it: `python process_guard.py GRACE_S COMMAND...`.

The guard leads a process group of its own. It ends the whole group when the command ends, and when its own standard
input closes: the other end of that pipe is held by the process that wanted the command, and the kernel closes it
whatever way that process dies. A command that is asked to end has GRACE_S seconds to do so. Loads nothing but the
standard library, and does not know what it runs.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence


def run_guarded(command: Sequence[str], grace_s: float) -> int:
    """Run a command to its end, or to the end of standard input.

    Args:
        command: Program and arguments.
        grace_s: Seconds between asking it to end and killing it.

    Returns:
        The command's exit code, as `subprocess` has it. The group is killed before the guard itself ends.
    """
    signal.signal(signal.SIGTERM, lambda *_: None)  # sent to the whole group: the command ends by it, then the guard
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    threading.Thread(target=_end_with_input, args=(child, grace_s), daemon=True).start()
    return child.wait()


def _end_with_input(child: subprocess.Popen[bytes], grace_s: float) -> None:
    """Wait until nobody holds the other end of standard input any more, then end the command."""
    while os.read(0, 1 << 12):
        pass
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
    command = arguments[1:]
    code = run_guarded(command, float(arguments[0]))
    if os.getpgrp() == os.getpid():  # not when somebody runs it by hand, inside the group of a shell
        sys.stderr.write(f"process_guard: {command[0]} ended with exit code {code}\n")
        sys.stderr.flush()
        os.killpg(0, signal.SIGKILL)
    raise SystemExit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    main(sys.argv[1:])
