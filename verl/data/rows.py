# SPDX-License-Identifier: Apache-2.0
"""Reads rows from parquet and JSONL files, and says which file and row is wrong.

Knows no tokenizer and no meaning of a column.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from verl.utils.errors import UserError

_JSON_SUFFIXES = (".jsonl", ".json", ".ndjson")
_ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class Row:
    """One row and where it stands.

    Args:
        values: Column name to value, nested columns as dicts and lists.
        place: The file, and the row's number in it from 1 (the line, in JSONL).
    """

    values: dict[str, Any]
    place: str


def read_rows(files: Sequence[str], key: str, columns: Sequence[str]) -> list[Row]:
    """Read all rows of all files, in order.

    Args:
        files: Paths of parquet or JSONL files.
        key: Configuration key that names the files, for messages.
        columns: Columns that every file must have.

    Returns:
        The rows.

    Raises:
        UserError: No file given; a file is missing, unreadable, without rows, or lacks a column; a JSONL line is not
            an object.
    """
    if not files:
        raise UserError.for_key(key, list(files), "at least one parquet or JSONL file is needed", "Name one")
    rows: list[Row] = []
    for file in files:
        found = list(iter_rows(file, key))
        if not found:
            raise UserError.for_key(key, file, "this file has no rows", "Give a file with rows")
        check_columns(found[0].values, columns, file, key)
        rows.extend(found)
    return rows


def iter_rows(file: str, key: str) -> Iterator[Row]:
    """Read a file row by row, holding only a small part of it in memory.

    Args:
        file: Path of a parquet or JSONL file.
        key: Configuration key or argument that names it, for messages.

    Yields:
        The rows, in order.

    Raises:
        UserError: As `read_rows`, but for missing columns and an empty file.
    """
    path = Path(file).expanduser()
    _check_file(path, file, key)
    return _read_json(path, key) if path.suffix in _JSON_SUFFIXES else _read_parquet(path, key)


def check_columns(values: dict[str, Any], columns: Sequence[str], file: str, key: str) -> None:
    """Refuse a file that lacks a column.

    Args:
        values: A row of the file.
        columns: Columns needed.
        file: The file's name.
        key: Configuration key that names the file.

    Raises:
        UserError: A column is missing; the message names it and those found.
    """
    missing = [column for column in columns if column not in values]
    if missing:
        raise UserError.for_key(
            key,
            file,
            f"this file has no column {', '.join(map(repr, missing))}; it has {', '.join(map(repr, values))}",
            "Prepare the file with a script of examples/data_preprocess, or name the column with its data.*_key",
        )


def bad_row(row: Row, key: str, problem: str) -> UserError:
    """Build the message about one row.

    Args:
        row: The row.
        key: Configuration key that names its file.
        problem: What is wrong, in words.

    Returns:
        The error, ready to be raised.
    """
    return UserError.for_key(key, row.place, problem, "Mend or remove this row")


def _check_file(path: Path, file: str, key: str) -> None:
    if path.is_dir():
        raise UserError.for_key(key, file, "this is a folder", "Name the parquet or JSONL file in it")
    if not path.is_file():
        raise UserError.for_key(key, file, "this file does not exist", "Check the path, or prepare the data first")
    if path.suffix not in (*_JSON_SUFFIXES, ".parquet"):
        allowed = f"a name ending in .parquet or {', '.join(_JSON_SUFFIXES)} is needed"
        raise UserError.for_key(key, file, allowed, "Rename or convert the file")


def _read_parquet(path: Path, key: str) -> Iterator[Row]:
    try:
        number = 0
        for part in pyarrow.parquet.ParquetFile(path).iter_batches(_ROWS_AT_ONCE):
            for values in part.to_pylist():
                number += 1
                yield Row(values, f"{path} row {number}")
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise UserError.for_key(key, str(path), f"not readable as parquet: {error}", "Write the file again") from error


def _read_json(path: Path, key: str) -> Iterator[Row]:
    for number, line in enumerate(_read_lines(path, key), start=1):
        if line.strip():
            place = f"{path} line {number}"
            yield Row(_parse_line(line, place, key), place)


def _read_lines(path: Path, key: str) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8") as lines:
            yield from lines
    except (UnicodeDecodeError, OSError) as error:
        raise UserError.for_key(key, str(path), f"not readable as UTF-8 text: {error}", "Write it again") from error


def _parse_line(line: str, place: str, key: str) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError.for_key(key, place, f"not a JSON value: {error}", "Mend or remove this line") from error
    if not isinstance(values, dict):
        raise UserError.for_key(key, place, "not a JSON object", "Write one object per line")
    return values
