# SPDX-License-Identifier: Apache-2.0
"""Sequences of nearly equal lengths together, so that laying them out as rectangles wastes little.

Pure arithmetic on lengths; it knows neither tensors nor attention.
"""

from __future__ import annotations

from collections.abc import Sequence

MAX_PADDING_SHARE = 0.03
"""Largest share of a rectangle's places that may hold padding."""


def length_buckets(lengths: Sequence[int], max_padding: float = MAX_PADDING_SHARE) -> list[list[int]]:
    """Group sequences so that every group, padded to its longest, stays within the share of padding.

    From the longest down, a group takes the next sequence as long as it stays within the share: long sequences, whose
    padding would cost most, are grouped with their likes, and equal lengths always share a group.

    Args:
        lengths: Tokens of each sequence.
        max_padding: Padding over places, of each group; 0 groups equal lengths only.

    Returns:
        Groups of indices into `lengths`, longest sequences first; together they hold every index once.
    """
    groups: list[list[int]] = []
    held, longest = 0, 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        held += lengths[index]
        places = longest * (len(groups[-1]) + 1) if groups else 0
        if groups and places - held <= max_padding * places:
            groups[-1].append(index)
        else:
            groups.append([index])
            held = longest = lengths[index]
    return groups


def padded_places(lengths: Sequence[int], max_padding: float = MAX_PADDING_SHARE) -> int:
    """Count the places that the groups take, padding included.

    Args:
        lengths: Tokens of each sequence.
        max_padding: As for `length_buckets`.

    Returns:
        Sum over groups of sequences times longest.
    """
    return sum(len(group) * lengths[group[0]] for group in length_buckets(lengths, max_padding))
