# SPDX-License-Identifier: Apache-2.0
"""The display written into a string: lines where there is no terminal, a live table where there is one."""

from __future__ import annotations

import re
from io import StringIO

import pytest
from rich.console import Console

from verl.utils.console import ConsoleDisplay, DisplayColumn

COLUMNS = [DisplayColumn("accuracy", "acc"), DisplayColumn("length", "len", ".0f")]


def display(is_terminal: bool, total_steps: int = 30, first_step: int = 0) -> tuple[ConsoleDisplay, StringIO]:
    out = StringIO()
    console = Console(file=out, force_terminal=is_terminal, width=100, color_system=None)
    return ConsoleDisplay(COLUMNS, total_steps, first_step, console), out


def last_frame(text: str) -> list[str]:
    """The table as it stands at the end: what was printed after the last move of the cursor to the top."""
    frame = re.split(r"\x1b\[1A", text)[-1]
    return re.sub(r"\x1b\[[0-9?]*[A-Za-z]|\r", "", frame).splitlines()


def test_a_log_file_gets_one_plain_line_per_step() -> None:
    shown, out = display(is_terminal=False)
    shown.write(1, {"acc": 0.25, "len": 12.6, "other": 1.0})
    shown.write(2, {"len": 13.0})
    shown.close()
    first, second = out.getvalue().splitlines()
    assert first.startswith("step 1/30 | accuracy 0.250 | length 13 | left ")
    assert second.startswith("step 2/30 | length 13 | left ")
    assert "\x1b" not in out.getvalue()


def test_a_line_longer_than_the_console_is_not_broken() -> None:
    out = StringIO()
    columns = [DisplayColumn(f"column{n}", "x") for n in range(20)]
    shown = ConsoleDisplay(columns, 30, console=Console(file=out, force_terminal=False, width=40))
    shown.write(1, {"x": 1.0})
    shown.close()
    assert len(out.getvalue().splitlines()) == 1


def test_time_left_counts_the_steps_of_this_run_only() -> None:
    shown, out = display(is_terminal=False, first_step=10)
    shown.write(10, {})  # the validation before the first step of a resumed run
    shown._started_s -= 600  # ten steps in ten minutes: ten more take as long
    shown.write(20, {})
    shown.write(30, {})
    shown.close()
    assert [line.split(" left ")[1] for line in out.getvalue().splitlines()] == ["0.0 min", "10.0 min", "0.0 min"]


@pytest.mark.parametrize("is_terminal", [False, True])
def test_notes_keep_brackets_and_markup(is_terminal: bool) -> None:
    shown, out = display(is_terminal)
    shown.note("checkpoint [bold]of[/bold] step [3]")
    shown.close()
    assert "checkpoint [bold]of[/bold] step [3]" in out.getvalue()


def test_a_terminal_gets_a_table_with_a_progress_bar() -> None:
    shown, out = display(is_terminal=True, total_steps=3)
    shown.write(1, {"acc": 0.25, "len": 12.0})
    shown.write(2, {"acc": 0.5})
    shown.close()
    frame = last_frame(out.getvalue())
    rows = [line.split() for line in frame]
    assert rows[-3:-1] == [["1", "0.250", "12"], ["2", "0.500"]]
    assert rows[-1][0] == "training" and "2/3" in rows[-1]


def test_the_table_keeps_the_last_twelve_steps() -> None:
    shown, out = display(is_terminal=True)
    for step in range(1, 21):
        shown.write(step, {"acc": step / 100})
    shown.close()
    text = re.sub(r"\x1b\[[0-9?]*[A-Za-z]|\r", "", out.getvalue())
    steps = [int(match) for match in re.findall(r"^\s*(\d+)\s+0\.\d{3}", text, flags=re.MULTILINE)]
    assert steps[-12:] == list(range(9, 21))
    assert "20/30" in text


def test_close_gives_the_terminal_back_and_may_come_twice() -> None:
    shown, out = display(is_terminal=True)
    shown.close()
    assert out.getvalue().rstrip().endswith("\x1b[?25h")  # the cursor is shown again
    shown.close()
    shown.write(1, {"acc": 0.5})
    assert "step 1/30 | accuracy 0.500" in out.getvalue()


def test_a_long_run_writes_few_lines_but_all_news() -> None:
    out = StringIO()
    columns = [DisplayColumn("loss", "loss"), DisplayColumn("held-out", "val", is_news=True)]
    shown = ConsoleDisplay(columns, 600, console=Console(file=out, force_terminal=False, width=100))
    for step in range(1, 601):
        shown.write(step, {"loss": 1.0} | ({"val": 0.5} if step == 123 else {}))
    shown.close()
    steps = [int(line.split()[1].split("/")[0]) for line in out.getvalue().splitlines()]
    assert steps == [*range(10, 121, 10), 123, *range(130, 601, 10)]
