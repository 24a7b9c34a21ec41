# SPDX-License-Identifier: Apache-2.0
"""Rows to one batch: a list per field. Nothing is padded here; padding belongs to the edge of a forward pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def collate_rows(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Turn rows into columns.

    Args:
        rows: Rows with the same fields.

    Returns:
        Field name to the rows' values, in order.

    Raises:
        ValueError: The rows' fields differ.
    """
    if not rows:
        return {}
    fields = list(rows[0])
    for place, row in enumerate(rows):
        if set(row) != set(fields):
            raise ValueError(f"row {place} of the batch has fields {sorted(row)}, row 0 has {sorted(fields)}")
    return {field: [row[field] for row in rows] for field in fields}
