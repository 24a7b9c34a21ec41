# SPDX-License-Identifier: Apache-2.0
"""Writes rows to a parquet or JSONL file, whole or not at all. Knows no meaning of a column."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from verl.utils.errors import UserError


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]], key: str) -> None:
    """Write a file under a temporary name and rename it; its folder is made where it is missing.

    Args:
        path: Name ending in `.parquet`; anything else becomes JSONL.
        rows: Column name to value; a parquet file gets every column that any row has.
        key: Configuration key or argument that names the file, for messages.

    Raises:
        UserError: Parquet has no type for a column whose rows differ too much.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if path.suffix == ".parquet":
            pyarrow.parquet.write_table(_table(rows, path, key), temporary)
        else:
            with temporary.open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _table(rows: Sequence[Mapping[str, Any]], path: Path, key: str) -> pyarrow.Table:
    names = dict.fromkeys(name for row in rows for name in row)
    try:
        return pyarrow.table({name: [row.get(name) for row in rows] for name in names})
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError) as error:
        raise UserError.for_key(
            key, str(path), f"parquet cannot hold these rows: {error}", "Name a file ending in .jsonl"
        ) from error
