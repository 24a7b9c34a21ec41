# SPDX-License-Identifier: Apache-2.0
"""Overlapping windows over the reasoning steps of a response that is longer than the PRM's context. Numbers only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """Steps `first` to `end - 1` are shown, of which those from `first_new` on are scored.

    Args:
        first: First step shown.
        first_new: First step scored.
        end: One past the last step.
        max_step_tokens: Of a longer step only this many last tokens are shown.
        is_cut: Whether a step was cut that way.
    """

    first: int
    first_new: int
    end: int
    max_step_tokens: int
    is_cut: bool


def plan_windows(step_tokens: Sequence[int], room: int) -> list[Window]:
    """Choose windows so that every step is scored once, behind as many earlier steps as fit into half the room.

    Args:
        step_tokens: [K] tokens of each step, its step token included.
        room: Tokens that a window has for steps.

    Returns:
        Windows in order; one where everything fits, none without steps.

    Raises:
        ValueError: There is no room for a token of content and a step token.
    """
    if room < 2 and step_tokens:
        raise ValueError(f"room for {room} tokens is not enough")
    sizes = [min(size, room) for size in step_tokens]
    windows: list[Window] = []
    scored = 0
    while scored < len(sizes):
        first = scored
        context = 0
        allowed = min(room // 2, room - sizes[scored])
        while first > 0 and context + sizes[first - 1] <= allowed:
            first -= 1
            context += sizes[first]
        end = scored
        used = context
        while end < len(sizes) and used + sizes[end] <= room:
            used += sizes[end]
            end += 1
        windows.append(Window(first, scored, end, room, any(size > room for size in step_tokens[first:end])))
        scored = end
    return windows
