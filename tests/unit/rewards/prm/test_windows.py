# SPDX-License-Identifier: Apache-2.0
"""Windows over long responses: every step scored once, nothing over the room, context where there is any."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl.rewards.prm.windows import Window, plan_windows


def test_one_window_where_everything_fits():
    assert plan_windows([3, 4, 3], 10) == [Window(0, 0, 3, 10, False)]
    assert plan_windows([], 10) == []


def test_later_windows_begin_with_half_a_room_of_context():
    assert plan_windows([2] * 8, 8) == [Window(0, 0, 4, 8, False), Window(2, 4, 6, 8, False), Window(4, 6, 8, 8, False)]


def test_context_gives_way_to_a_long_step():
    windows = plan_windows([2, 2, 7, 2], 8)
    assert windows[1] == Window(2, 2, 3, 8, False), "a step of 7 leaves no room for an earlier one"


def test_a_step_over_the_room_stands_alone_and_is_marked():
    assert plan_windows([3, 30, 3], 10)[1] == Window(1, 1, 2, 10, True)


def test_no_room_is_refused():
    with pytest.raises(ValueError, match="room"):
        plan_windows([1], 1)


@given(st.lists(st.integers(1, 40), max_size=30), st.integers(2, 50))
def test_every_step_is_scored_once_within_the_room(sizes, room):
    windows = plan_windows(sizes, room)
    assert [k for w in windows for k in range(w.first_new, w.end)] == list(range(len(sizes)))
    for w in windows:
        assert w.first <= w.first_new < w.end
        assert sum(min(size, w.max_step_tokens) for size in sizes[w.first : w.end]) <= room
        assert w.is_cut == any(size > room for size in sizes[w.first : w.end])
    if sum(sizes) <= room:
        assert len(windows) == (1 if sizes else 0)
