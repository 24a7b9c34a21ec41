# SPDX-License-Identifier: Apache-2.0
"""Plain text tables for plans and references. Knows nothing of what they hold."""

from __future__ import annotations

from collections.abc import Sequence


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]], indent: str = "  ") -> str:
    """Align columns.

    Args:
        header: Names of the columns.
        rows: Cells, as many per row as the header has.
        indent: Put before every line.

    Returns:
        Lines without trailing spaces, joined by newlines.
    """
    table = [list(header), *(list(row) for row in rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    rule = ["-" * width for width in widths]
    lines = [table[0], rule, *table[1:]]
    return "\n".join(
        (indent + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))).rstrip()
        for line in lines
    )


def format_gib(num_bytes: float) -> str:
    """Write a number of bytes in GiB, with more digits when it is small."""
    gib = num_bytes / 2**30
    return f"{gib:.1f} GiB" if gib >= 1 else f"{gib:.3f} GiB"
