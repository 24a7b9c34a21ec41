# SPDX-License-Identifier: Apache-2.0
"""From a row to a problem and its answer, whatever their columns are called; or the reason why there is none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from prm_tools.tables import Record, first_values, read_table
from verl.rewards.prm.prompt import problem_of
from verl.utils.errors import UserError

PROBLEM_COLUMNS = ("problem", "question", "prompt", "query")
_SURE_RESPONSE_COLUMNS = ("response", "completion", "output")
# `answer` is often the true answer, so a column of responses goes before it
RESPONSE_COLUMNS = (*_SURE_RESPONSE_COLUMNS, "answer")
RESPONSES_COLUMNS = ("responses",)
INDEX_COLUMN = "response_index"
GROUP_COLUMN = "problem_index"

Answer = str | tuple[str, ...]


class UnusableRowError(ValueError):
    """A row that cannot be scored; its text says why."""


@dataclass(frozen=True)
class Columns:
    """Where a file keeps what is scored.

    Args:
        problem: A text, or chat messages.
        response: A text, or a list of reasoning steps.
        responses: A list of whole responses; such a row stands for as many rows as it has responses. Empty for none.
    """

    problem: str
    response: str
    responses: str = ""


def find_columns(file: str, key: str, problem: str | None, response: str | None, responses: str | None) -> Columns:
    """Find the columns by their usual names, or take those given.

    Args:
        file: Path of a parquet or JSON Lines file.
        key: The option that names it, for messages.
        problem: Column of the problem, None to look for it.
        response: Column of the response, None to look for it.
        responses: Column with a list of responses, None to look for it where there is no response column.

    Raises:
        UserError: The file has no such column.
    """
    values = first_values(file, key)
    found = choose_column(values, problem, PROBLEM_COLUMNS, file, "--problem-column")
    has_one = any(name in values for name in _SURE_RESPONSE_COLUMNS)
    wants_many = response is None and (responses is not None or not has_one)
    if wants_many and (responses or any(name in values for name in RESPONSES_COLUMNS)):
        many = choose_column(values, responses, RESPONSES_COLUMNS, file, "--responses-column")
        return Columns(found, "response", many)
    return Columns(found, choose_column(values, response, RESPONSE_COLUMNS, file, "--response-column"))


def choose_column(values: Mapping[str, Any], given: str | None, usual: Sequence[str], file: str, option: str) -> str:
    """Choose one column of a file.

    Args:
        values: A row of it.
        given: The name the user gave, None to take the first usual one.
        usual: Usual names.
        file: The file, for messages.
        option: The option that names the column, for messages.

    Raises:
        UserError: There is no such column.
    """
    names = [given] if given else list(usual)
    for name in names:
        if name in values:
            return name
    has = f"{file} has no column {' or '.join(map(repr, names))}; it has {', '.join(map(repr, values))}"
    raise UserError.for_key(option, given, has, "Name the column with this option")


def read_responses(file: str, key: str, columns: Columns) -> Iterator[Record]:
    """Read a file with one response in each row; rows with many are taken apart.

    Args:
        file: Path of a parquet or JSON Lines file.
        key: The option that names it, for messages.
        columns: Where the response is, or the responses.

    Yields:
        The rows. One that was taken apart has its response, `problem_index` (the row's number from
        0) and `response_index` in place of the list.
    """
    for number, record in enumerate(read_table(file, key)):
        many = record.values.get(columns.responses) if columns.responses else None
        if not isinstance(many, list | tuple) or not many:
            yield _without_list(record, columns)
            continue
        rest = {name: value for name, value in record.values.items() if name != columns.responses}
        for index, response in enumerate(many):
            place = f"{record.place} response {index}"
            yield Record(place, {**rest, columns.response: response, GROUP_COLUMN: number, INDEX_COLUMN: index})


def problem_and_answer(record: Record, columns: Columns) -> tuple[str, Answer]:
    """Read what a PRM is to be shown.

    Args:
        record: A row.
        columns: Where.

    Returns:
        The problem's text; the response's text, or its reasoning steps.

    Raises:
        UnusableRowError: There is no such thing in this row.
    """
    if record.fault:
        raise UnusableRowError(record.fault)
    return problem_text(record.values, columns.problem), answer_of(record.values, columns.response)


def problem_text(values: Mapping[str, Any], column: str) -> str:
    """Read a problem.

    Args:
        values: A row.
        column: Where.

    Raises:
        UnusableRowError: It is neither a text nor chat messages, or empty.
    """
    value = values.get(column)
    text: Any = value
    if isinstance(value, list) and all(isinstance(message, Mapping) for message in value):
        text = problem_of(value)
    if not isinstance(text, str):
        raise UnusableRowError(f"{column!r} must be a text or chat messages, not {type(value).__name__}")
    if not text.strip():
        raise UnusableRowError(f"{column!r} is empty")
    return text


def answer_of(values: Mapping[str, Any], column: str) -> Answer:
    """Read a response.

    Args:
        values: A row.
        column: Where.

    Raises:
        UnusableRowError: It is neither a text nor a list of texts, or empty.
    """
    value = values.get(column)
    steps = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list | tuple) else None
    if steps is None or not all(isinstance(step, str) for step in steps):
        what = "a list with other things than texts" if steps is not None else type(value).__name__
        raise UnusableRowError(f"{column!r} must be a text or a list of reasoning steps, not {what}")
    if not "".join(steps).strip():
        raise UnusableRowError(f"{column!r} is empty")
    return value if isinstance(value, str) else steps


def _without_list(record: Record, columns: Columns) -> Record:
    """A row of a file with lists that has none: its response is missing, which its score will say."""
    if not columns.responses or record.fault:
        return record
    return replace(record, fault=f"{columns.responses!r} must be a list of responses that is not empty")
