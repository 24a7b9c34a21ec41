# SPDX-License-Identifier: Apache-2.0
"""What every entry point does before its own work: log, command line, configuration, plan, exit codes.

    command line -> configuration -> plan -> [a dry run ends here] -> files looked for -> the program's own work

Whatever the user got wrong is said in one message; exit code 2.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

from rich.console import Console

from verl.config.files import check_files, check_sizes
from verl.config.hydra import LoadedConfig, load_config, parse_command_line
from verl.utils.errors import UserError

logger = logging.getLogger(__name__)

_QUIET_LOGGERS = ("httpx", "urllib3", "filelock", "fsspec")


@dataclass(frozen=True)
class EntryPoint:
    """What tells the entry points apart.

    Args:
        config_name: Its YAML file.
        root: Its configuration.
        plan: Writes the plan of a checked configuration; None for a program without one, which has no dry run.
        run: Does the work, after plan and files.
        help_text: Shown for --help.
    """

    config_name: str
    root: type[Any]
    plan: Callable[[Any], str] | None
    run: Callable[[LoadedConfig[Any]], None]
    help_text: str


def run_entry_point(entry: EntryPoint, arguments: Sequence[str] | None) -> int:
    """Run a program.

    Args:
        entry: Which.
        arguments: Command line without the program's name; None for `sys.argv`.

    Returns:
        Exit code: 0, or 2 when the user has to mend something.
    """
    _prepare_process()
    try:
        line = parse_command_line(sys.argv[1:] if arguments is None else arguments, entry.config_name)
        if line.wants_help:
            Console().print(entry.help_text, markup=False, highlight=False)
            return 0
        _run(entry, load_config(line.config_name, line.overrides, entry.root, line.config_dir))
    except UserError as error:
        # an error that was raised in a Ray actor carries the original one beside a remote traceback
        message = str(getattr(error, "cause", None) or error)
        Console(stderr=True).print(message, markup=False, highlight=False, soft_wrap=True)
        return 2
    return 0


def _run(entry: EntryPoint, loaded: LoadedConfig[Any]) -> None:
    for notice in loaded.notices:
        logger.warning("%s", notice)
    check_sizes(loaded.config)
    if entry.plan is not None:
        plan = entry.plan(loaded.config)
        if loaded.config.trainer.dry_run:  # the plan is what was asked for, so the level of the log must not hide it
            Console().print(plan, highlight=False, markup=False, soft_wrap=True)
            return
        logger.info("%s", plan)
    check_files(loaded.config)
    entry.run(loaded)


def _prepare_process() -> None:
    faulthandler.enable(sys.__stderr__ or sys.stderr)
    logging.basicConfig(
        level=os.environ.get("VERL_LOGGING_LEVEL", "INFO"), format="%(levelname)s %(name)s: %(message)s"
    )
    for name in _QUIET_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    if threading.current_thread() is threading.main_thread():
        # a cluster ends jobs by SIGTERM: leave through the ordinary exit, which ends servers and their engines
        signal.signal(signal.SIGTERM, _exit_on_signal)


def _exit_on_signal(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
