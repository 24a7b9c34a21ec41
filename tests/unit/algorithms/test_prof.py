# SPDX-License-Identifier: Apache-2.0
"""The PROF filter against hand-worked groups and a search through all subsets."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.step_batches import StepBatch, batch_of
from verl.algorithms.prof import ProfSettings, prof_filter


def qualities(*means: float) -> list[list[tuple[float, int]]]:
    """Two steps each, so that no response is malformed."""
    return [[(mean, 0), (mean, 1)] for mean in means]


def kept(batch: StepBatch, **settings) -> list[int]:
    return torch.nonzero(prof_filter(batch.inputs(), ProfSettings(**settings))).flatten().tolist()


def test_right_ones_stay_for_good_steps_and_wrong_ones_for_bad():
    batch = batch_of(qualities(0.9, 0.2, 0.8, 0.7, 0.1, 0.95), [1, 1, 1, -1, -1, -1])
    assert kept(batch, keep=4) == [0, 2, 3, 4]
    assert kept(batch, keep=2) == [0, 4]


def test_an_odd_place_is_for_a_right_answer_and_zero_keeps_half():
    batch = batch_of(qualities(0.9, 0.2, 0.8, 0.7, 0.1), [1, 1, 1, -1, -1])
    assert kept(batch, keep=3) == [0, 2, 4]
    assert kept(batch) == kept(batch, keep=3)


def test_places_one_kind_cannot_fill_go_to_the_other():
    mostly_right = batch_of(qualities(0.9, 0.2, 0.8, 0.7, 0.5), [1, 1, 1, 1, -1])
    assert kept(mostly_right, keep=4) == [0, 2, 3, 4]
    assert kept(batch_of(qualities(0.9, 0.2, 0.8, 0.7, 0.5), [-1, -1, -1, 1, -1]), keep=4) == [1, 2, 3, 4]


def test_a_group_of_one_kind_keeps_its_most_consistent():
    assert kept(batch_of(qualities(0.9, 0.2, 0.8), [1, 1, 1]), keep=2) == [0, 2]
    assert kept(batch_of(qualities(0.9, 0.2, 0.8), [-1, -1, -1]), keep=2) == [1, 2]


def test_one_step_and_many_steps_count_against_a_response():
    steps = [[(0.99, 0)], *qualities(0.5, 0.4), [(0.98, end) for end in range(4)]]
    batch = batch_of(steps, [1.0] * 4)
    assert kept(batch, keep=3) == [1, 2, 3]
    assert kept(batch, keep=2, max_steps=4) == [1, 2]
    assert kept(batch, keep=2, format_penalty=0.0) == [0, 3]
    # a wrong one with one step only is kept as a bad example
    assert kept(batch_of(steps[:3], [-1.0] * 3), keep=2) == [0, 2]


def test_an_empty_response_has_quality_zero():
    assert kept(batch_of([[], *qualities(0.1, 0.2)], [1.0] * 3), keep=2) == [1, 2]
    assert kept(batch_of([[], *qualities(0.1, 0.2)], [-1.0] * 3), keep=2) == [0, 1]


def test_small_groups_and_groups_with_an_unscored_response_are_kept_whole():
    batch = batch_of(
        [*qualities(0.9, 0.1), [], *qualities(0.2, 0.3, 0.4)],
        [1.0, 1.0, 1.0, 1.0, 1.0, 1.0],
        groups=[0, 0, 1, 1, 1, 2],
        scored=[True, True, False, True, True, True],
    )
    assert kept(batch, keep=2) == [0, 1, 2, 3, 4, 5]


def test_the_verdict_is_required():
    inputs = batch_of(qualities(0.5), [1.0]).inputs()
    with pytest.raises(ValueError, match="is_correct"):
        prof_filter(type(inputs)(**{**vars(inputs), "is_correct": None}), ProfSettings())


@given(st.lists(st.tuples(st.integers(0, 1000), st.booleans()), min_size=1, max_size=7, unique_by=lambda pair: pair[0]))
def test_equals_the_best_of_all_subsets(group):
    """Of all subsets of the size: the most balanced, with more right ones if uneven, then the most consistent."""
    batch = batch_of(qualities(*[score / 1000 for score, _ in group]), [1.0 if right else -1.0 for _, right in group])
    size = (len(group) + 1) // 2

    def merit(rows: tuple[int, ...]) -> tuple[int, int, int]:
        surplus = sum(1 if group[row][1] else -1 for row in rows)
        return -abs(surplus), surplus, sum(group[row][0] * (1 if group[row][1] else -1) for row in rows)

    assert kept(batch) == list(max(combinations(range(len(group)), size), key=merit))


@given(st.permutations(range(6)))
def test_permuted_rows_are_kept_alike(order):
    batch = batch_of(qualities(0.9, 0.2, 0.8, 0.7, 0.1, 0.95), [1, 1, 1, -1, -1, -1], groups=[0, 0, 0, 0, 0, 0])
    straight = prof_filter(batch.inputs(), ProfSettings()).numpy()
    moved = prof_filter(batch.reordered(list(order)).inputs(), ProfSettings()).numpy()
    assert np.array_equal(moved, straight[list(order)])
