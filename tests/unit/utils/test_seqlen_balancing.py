# SPDX-License-Identifier: Apache-2.0
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verl.utils.seqlen_balancing import balanced_partition, partition_under_budget, split_further

LENGTHS = st.lists(st.integers(0, 50), min_size=1, max_size=14)


def _covers_once(parts: list[list[int]], num_items: int) -> bool:
    return sorted(i for part in parts for i in part) == list(range(num_items)) and all(parts)


@settings(max_examples=60, deadline=None)
@given(costs=LENGTHS, data=st.data())
def test_every_index_lands_in_exactly_one_non_empty_part(costs: list[int], data: st.DataObject) -> None:
    num_parts = data.draw(st.integers(1, len(costs)))
    parts = balanced_partition(costs, num_parts)
    assert len(parts) == num_parts
    assert _covers_once(parts, len(costs))
    assert all(part == sorted(part) for part in parts)


def test_close_to_the_best_split_found_by_trying_all() -> None:
    costs = [31, 27, 20, 14, 13, 12, 9, 8, 3]
    best = min(
        max(sum(c for c, owner in zip(costs, owners, strict=True) if owner == part) for part in range(3))
        for owners in product(range(3), repeat=len(costs))
    )
    found = max(sum(costs[i] for i in part) for part in balanced_partition(costs, 3))
    assert best <= found <= 1.05 * best


def test_equal_size_parts_are_equal_and_better_than_cutting_in_order() -> None:
    costs = [100, 90, 80, 70, 4, 3, 2, 1]
    parts = balanced_partition(costs, 4, equal_size=True)
    assert [len(part) for part in parts] == [2, 2, 2, 2]
    assert _covers_once(parts, 8)
    assert max(sum(costs[i] for i in part) for part in parts) == 101


@pytest.mark.parametrize(("num_parts", "equal_size"), [(0, False), (4, False), (2, True)])
def test_impossible_splits_are_refused(num_parts: int, equal_size: bool) -> None:
    with pytest.raises(ValueError, match="3 items"):
        balanced_partition([1, 2, 3], num_parts, equal_size)


@settings(max_examples=60, deadline=None)
@given(costs=LENGTHS, slack=st.integers(0, 60))
def test_budget_holds_in_every_part(costs: list[int], slack: int) -> None:
    budget = max(max(costs), 1) + slack
    parts = partition_under_budget(costs, budget)
    assert _covers_once(parts, len(costs))
    assert all(sum(costs[i] for i in part) <= budget for part in parts)


def test_budget_below_one_item_is_refused_and_no_items_give_no_parts() -> None:
    with pytest.raises(ValueError, match="cost 9"):
        partition_under_budget([1, 9], 8)
    assert partition_under_budget([], 8) == []


def test_split_further_reaches_the_count_or_single_items() -> None:
    costs = [5, 5, 5, 5]
    assert len(split_further([[0, 1, 2, 3]], costs, 3)) == 3
    assert _covers_once(split_further([[0, 1, 2, 3]], costs, 3), 4)
    assert split_further([[0, 1], [2, 3]], costs, 9) == [[0], [1], [2], [3]]
