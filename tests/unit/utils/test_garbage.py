# SPDX-License-Identifier: Apache-2.0
"""Cycles are freed when it is said, and only then; afterwards everything is as before."""

from __future__ import annotations

import gc
import weakref

import pytest

from verl.utils.garbage import StepwiseGarbage


class Node:
    """Refers to itself."""

    def __init__(self) -> None:
        self.me = self


def test_cycles_are_freed_by_hand_alone() -> None:
    with StepwiseGarbage() as garbage:
        seen = weakref.ref(Node())
        for _ in range(5000):  # enough for any automatic collection
            Node()
        assert seen() is not None
        garbage.collect()
        assert seen() is None
    seen = weakref.ref(Node())
    for _ in range(5000):
        Node()
    assert seen() is None


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_is_left_as_it_was_found_also_after_an_error(enabled: bool) -> None:
    (gc.enable if enabled else gc.disable)()
    try:
        with pytest.raises(RuntimeError), StepwiseGarbage():
            assert not gc.isenabled() and gc.get_freeze_count() > 0
            raise RuntimeError
        assert gc.isenabled() is enabled and gc.get_freeze_count() == 0
    finally:
        gc.enable()
