# SPDX-License-Identifier: Apache-2.0
"""Tables in files: read row by row, a broken row being a row like any other; written whole or not at all.

Knows JSON Lines and parquet, and no meaning of a column.
"""

from __future__ import annotations

import datetime
import decimal
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from verl.data.rows import iter_rows
from verl.utils.errors import UserError

JSON_SUFFIXES = (".jsonl", ".json", ".ndjson")
_ROWS_AT_ONCE = 1024
_MISFITS = (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError, TypeError)

Rows = Callable[[], Iterator[Mapping[str, Any]]]


@dataclass(frozen=True)
class Record:
    """One row of a file.

    Args:
        place: The file, and the row's number in it from 1 (the line, in JSON Lines).
        values: Column name to value; empty where the row cannot be read.
        fault: Why it cannot be read, empty where it can.
    """

    place: str
    values: Mapping[str, Any]
    fault: str = ""


def read_table(file: str, key: str) -> Iterator[Record]:
    """Read a file row by row.

    Args:
        file: Path of a parquet or JSON Lines file.
        key: The option that names it, for messages.

    Returns:
        The rows, in order; blank lines are no rows.

    Raises:
        UserError: The file is missing, has another suffix, or is not readable as what its suffix says.
    """
    rows = iter_rows(file, key)  # looks at the name at once
    if Path(file).suffix in JSON_SUFFIXES:
        return _read_lines(Path(file).expanduser())
    return (Record(row.place, row.values) for row in rows)


def first_values(file: str, key: str) -> Mapping[str, Any]:
    """Return the first readable row of a file, to find its columns by.

    Args:
        file: Path of a parquet or JSON Lines file.
        key: The option that names it, for messages.

    Raises:
        UserError: As `read_table`; or there is no row, or none that can be read.
    """
    fault = ""
    for record in read_table(file, key):
        if not record.fault:
            return record.values
        fault = fault or f"{record.place}: {record.fault}"
    problem = f"no row of this file can be read ({fault})" if fault else "this file has no rows"
    raise UserError.for_key(key, file, problem, "Give a file with rows")


def check_output(file: str, key: str) -> Path:
    """Look at the name of a file to be written, and make its folder.

    Args:
        file: The path.
        key: The option that names it, for messages.

    Returns:
        The path.

    Raises:
        UserError: It is a folder, has an unknown suffix, or its folder cannot be made.
    """
    path = Path(file).expanduser()
    if path.is_dir():
        raise UserError.for_key(key, file, "this is a folder", "Name a file in it")
    if path.suffix not in (*JSON_SUFFIXES, ".parquet"):
        allowed = f"a name ending in .parquet or {', '.join(JSON_SUFFIXES)} is needed"
        raise UserError.for_key(key, file, allowed, "Choose one of them")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError.for_key(key, file, f"its folder cannot be made: {error}", "Name another") from error
    return path


def write_table(path: Path, rows: Rows, key: str) -> int:
    """Write rows in the format that the file's suffix names.

    Args:
        path: Where; a file that is there is replaced at the end.
        rows: Gives the rows from the first one on, each time it is called (parquet needs to see them twice).
        key: The option that names the file, for messages.

    Returns:
        Number of rows.

    Raises:
        UserError: The rows do not fit into the format, or the file cannot be written.
    """
    unfinished = path.with_name(f"{path.name}.unfinished")
    write = _write_parquet if path.suffix == ".parquet" else _write_lines
    try:
        count = write(unfinished, rows)
        unfinished.replace(path)
    except _MISFITS as error:
        raise _misfit(path, key, error) from error
    except OSError as error:
        raise UserError.for_key(key, str(path), f"cannot be written: {error}", "Name another file") from error
    finally:
        unfinished.unlink(missing_ok=True)
    return count


def check_fit(path: Path, rows: Iterator[Mapping[str, Any]], key: str) -> None:
    """Find out whether rows fit into a file's format, before hours are spent on what is to be written beside them.

    Args:
        path: The file that is to be written.
        rows: The rows.
        key: The option that names the file, for messages.

    Raises:
        UserError: They do not.
    """
    try:
        if path.suffix == ".parquet":
            _schema_of(rows)
            return
        for row in rows:
            json.dumps(row, default=_as_json)
    except _MISFITS as error:
        raise _misfit(path, key, error) from error


def _misfit(path: Path, key: str, error: Exception) -> UserError:
    other = "JSON Lines (.jsonl)" if path.suffix == ".parquet" else "parquet"
    return UserError.for_key(key, str(path), f"a column does not fit: {error}", f"Write {other} instead")


def _read_lines(path: Path) -> Iterator[Record]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _parse_line(line, path, number)


def _parse_line(line: bytes, path: Path, number: int) -> Record:
    place, unreadable = f"{path} line {number}", f"line {number} is not readable"
    try:
        values = json.loads(line.decode("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        return Record(place, {}, f"{unreadable}: {error}")
    if not isinstance(values, dict):
        return Record(place, {}, f"{unreadable}: a JSON object is needed, not {type(values).__name__}")
    return Record(place, values)


def _write_lines(path: Path, rows: Rows) -> int:
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for row in rows():
            file.write(json.dumps(row, ensure_ascii=False, default=_as_json) + "\n")
            count += 1
    return count


def _as_json(value: object) -> object:
    """Translate what parquet knows and JSON does not."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def _write_parquet(path: Path, rows: Rows) -> int:
    """Find a schema that holds all rows, then write them; a column that the first rows lack is null there."""
    schema = _schema_of(rows())
    names = schema.names
    count = 0
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        for part in _parts(rows()):
            whole = [{name: row.get(name) for name in names} for row in part]
            writer.write_table(pyarrow.Table.from_pylist(whole, schema=schema))
            count += len(part)
    return count


def _schema_of(rows: Iterator[Mapping[str, Any]]) -> pyarrow.Schema:
    schemas = [pyarrow.Table.from_pylist(part).schema for part in _parts(rows)]
    return pyarrow.unify_schemas(schemas, promote_options="permissive") if schemas else pyarrow.schema([])


def _parts(rows: Iterator[Mapping[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Cut rows into parts in which every row has the same columns (pyarrow reads them off a part's first row)."""
    while part := [dict(row) for row in islice(rows, _ROWS_AT_ONCE)]:
        names = list(dict.fromkeys(name for row in part for name in row))
        yield [{name: row.get(name) for name in names} for row in part]
