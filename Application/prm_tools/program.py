# SPDX-License-Identifier: Apache-2.0
"""How every program here starts and ends: its log, one message for the user's mistakes, and its exit code.

0    done
1    something broke; what was done so far is kept
2    the user has to mend something
130  interrupted; the same command goes on (143 for SIGTERM)
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.table import Table

from verl.utils.errors import UserError

SUCCESS, USER_ERROR, INTERRUPTED = 0, 2, 130
_LOG_WIDTH = 300
_QUIET_LOGGERS = ("httpx", "urllib3", "filelock", "fsspec", "matplotlib")


def run_program(
    work: Callable[[argparse.Namespace], None], parser: argparse.ArgumentParser, argv: Sequence[str] | None = None
) -> int:
    """Run a program.

    Args:
        work: Does it; takes the parsed arguments.
        parser: Parses them.
        argv: Command line without the program's name; None for `sys.argv`.

    Returns:
        Exit code.
    """
    logging.basicConfig(
        level=os.environ.get("VERL_LOGGING_LEVEL", "WARNING"), format="%(levelname)s %(name)s: %(message)s"
    )
    for name in _QUIET_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    # a cluster ends jobs by SIGTERM: leave through the ordinary exit, which ends Ray and engines
    before = signal.signal(signal.SIGTERM, _exit_on_signal)
    try:
        work(parser.parse_args(argv))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from here", file=sys.stderr)
        return INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, before)
    return SUCCESS


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table on standard output.

    Args:
        title: Above it.
        columns: Headings; the first column is text, the others are numbers.
        rows: Cells; floats are shown with four decimals, None as a dash.
    """
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(_cell(cell) for cell in row))
    console = Console()
    if not console.is_terminal:
        console = Console(width=_LOG_WIDTH)  # nothing is cut short in a log
    console.print(table, markup=False, highlight=False, soft_wrap=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file, whole or not at all.

    Args:
        path: Where.
        content: What.
    """
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    unfinished.replace(path)


def beside(path: Path, ending: str) -> Path:
    """Name a file that belongs to another: `scored.jsonl` and `report.json` give `scored.report.json`.

    Args:
        path: The file it belongs to.
        ending: What replaces the suffix.
    """
    return path.with_name(f"{path.stem}.{ending}")


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _exit_on_signal(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
