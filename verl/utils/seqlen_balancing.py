# SPDX-License-Identifier: Apache-2.0
"""Splitting numbers (sequence lengths, costs) into parts of nearly equal sum; it knows nothing of tensors or ranks."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass
class _Tuple:
    """Parts under construction: a list of (sum, indices), largest sum first, as the differencing method needs."""

    parts: list[tuple[float, list[int]]]

    @property
    def spread(self) -> float:
        return self.parts[0][0] - self.parts[-1][0]

    def merged(self, other: _Tuple) -> _Tuple:
        """Join the largest part of one with the smallest of the other, and so on inwards."""
        joined = [
            (mine[0] + theirs[0], mine[1] + theirs[1])
            for mine, theirs in zip(self.parts, reversed(other.parts), strict=True)
        ]
        return _Tuple(sorted(joined, key=lambda part: (-part[0], part[1])))


def _start(costs: Sequence[float], num_parts: int, equal_size: bool) -> list[_Tuple]:
    """One tuple per number; with `equal_size` one per run of `num_parts` numbers, so that sizes stay equal."""
    order = sorted(range(len(costs)), key=lambda i: (-costs[i], i))
    run = num_parts if equal_size else 1
    tuples = []
    for first in range(0, len(order), run):
        parts: list[tuple[float, list[int]]] = [(float(costs[i]), [i]) for i in order[first : first + run]]
        tuples.append(_Tuple(parts + [(0.0, []) for _ in range(num_parts - len(parts))]))
    return tuples


def balanced_partition(costs: Sequence[float], num_parts: int, equal_size: bool = False) -> list[list[int]]:
    """Split indices into parts whose sums of cost are nearly equal.

    Args:
        costs: One non-negative cost per item, for example a sequence length in tokens.
        num_parts: Number of parts, 1 up to the number of items.
        equal_size: Give every part the same number of items; `num_parts` must then divide their number.

    Returns:
        `num_parts` lists of indices, each ascending and none empty; together they hold every index once.

    Raises:
        ValueError: `num_parts` is out of range, or does not divide with `equal_size`.

    Source: the largest differencing method of Karmarkar and Karp (1982), for k parts.
    """
    if not 1 <= num_parts <= len(costs):
        raise ValueError(f"{len(costs)} items cannot be split into {num_parts} non-empty parts")
    if equal_size and len(costs) % num_parts:
        raise ValueError(f"{len(costs)} items cannot be split into {num_parts} parts of equal size")
    heap = [(-start.spread, number, start) for number, start in enumerate(_start(costs, num_parts, equal_size))]
    heapq.heapify(heap)
    number = len(heap)
    while len(heap) > 1:
        merged = heapq.heappop(heap)[2].merged(heapq.heappop(heap)[2])
        heapq.heappush(heap, (-merged.spread, number, merged))
        number += 1
    parts = [sorted(indices) for _, indices in heap[0][2].parts]
    return _without_empty(parts, costs)


def _without_empty(parts: list[list[int]], costs: Sequence[float]) -> list[list[int]]:
    """Move the cheapest item of the part with the most items into each empty part (costs of zero can leave some)."""
    for empty in (part for part in parts if not part):
        donor = max(parts, key=len)
        item = min(donor, key=lambda i: (costs[i], i))
        donor.remove(item)
        empty.append(item)
    return parts


def partition_under_budget(costs: Sequence[int], budget: int) -> list[list[int]]:
    """Split indices into as few nearly equal parts as keep every part's sum within a budget.

    Args:
        costs: One cost per item, none above the budget.
        budget: Largest sum that a part may have.

    Returns:
        Lists of ascending indices; together they hold every index once. Empty for no items.

    Raises:
        ValueError: An item alone is above the budget.
    """
    if not costs:
        return []
    if max(costs) > budget:
        raise ValueError(f"an item of cost {max(costs)} does not fit a budget of {budget}")
    for num_parts in range(max(1, -(-sum(costs) // budget)), len(costs) + 1):
        parts = balanced_partition(costs, num_parts)
        if all(sum(costs[i] for i in part) <= budget for part in parts):
            return parts
    raise AssertionError("one item per part is always within the budget")


def split_further(parts: Sequence[Sequence[int]], costs: Sequence[float], num_parts: int) -> list[list[int]]:
    """Halve the costliest parts until there are `num_parts`; sums only shrink, so a budget that held still holds.

    Args:
        parts: Non-empty parts.
        costs: Cost per item.
        num_parts: Parts wanted, at least `len(parts)`.

    Returns:
        The parts; fewer than `num_parts` if every part is down to one item.
    """
    result = [list(part) for part in parts]
    while len(result) < num_parts:
        splittable = [i for i, part in enumerate(result) if len(part) > 1]
        if not splittable:
            break
        widest = max(splittable, key=lambda i: sum(costs[j] for j in result[i]))
        part = result.pop(widest)
        halves = balanced_partition([costs[i] for i in part], 2)
        result[widest:widest] = [[part[i] for i in half] for half in halves]
    return result
