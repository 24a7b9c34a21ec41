# SPDX-License-Identifier: Apache-2.0
"""Which tokens of an overlong sequence stay. Knows lengths only."""

from __future__ import annotations

from typing import Literal

Cut = Literal["left", "right", "middle"]


def kept_spans(length: int, limit: int, cut: Cut) -> list[tuple[int, int]]:
    """Choose the tokens that stay.

    Args:
        length: Length of the sequence in tokens.
        limit: The most that may stay.
        cut: Where tokens are taken out: `left` keeps the end, `right` the beginning, `middle` both ends (the
            beginning gets the smaller half).

    Returns:
        Half-open spans (start, end) that stay, in order; the whole sequence where it fits.
    """
    if length <= limit:
        return [(0, length)]
    if cut == "left":
        return [(length - limit, length)]
    if cut == "right":
        return [(0, limit)]
    head = limit // 2
    return [(0, head), (length - (limit - head), length)]


def truncate(token_ids: list[int], limit: int, cut: Cut) -> list[int]:
    """Cut a sequence to a limit.

    Args:
        token_ids: The sequence.
        limit: The most tokens that may stay.
        cut: As in `kept_spans`.

    Returns:
        The tokens that stay.
    """
    return [token for start, end in kept_spans(len(token_ids), limit, cut) for token in token_ids[start:end]]
