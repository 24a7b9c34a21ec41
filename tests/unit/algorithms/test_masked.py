# SPDX-License-Identifier: Apache-2.0
"""Masked and grouped statistics against plain loops."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from verl.algorithms.masked import (
    masked_mean,
    masked_sum,
    masked_whiten,
    means_of_the_others,
    minus_the_others,
    normalise_in_groups,
    sums_to_the_right,
    weighted_group_means,
)

NAN = float("nan")


def test_masked_sum_and_mean_ignore_what_is_outside():
    values = torch.tensor([[1.0, 2.0, NAN], [float("inf"), 5.0, 7.0]])
    mask = torch.tensor([[1, 1, 0], [0, 1, 0]])
    assert masked_sum(values, mask).item() == 8.0
    assert masked_sum(values, mask, dim=-1).tolist() == [3.0, 5.0]
    assert masked_mean(values, mask).item() == pytest.approx(8 / 3)
    assert masked_mean(values, mask.bool(), dim=-1).tolist() == [1.5, 5.0]


def test_an_empty_mask_gives_zero():
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert masked_mean(values, torch.zeros(2, 2)).item() == 0
    assert masked_mean(values, torch.tensor([[0, 0], [1, 0]]), dim=-1).tolist() == [0.0, 3.0]
    assert masked_whiten(values, torch.zeros(2, 2)).tolist() == [[0, 0], [0, 0]]


def test_masked_gradients_reach_only_the_mask():
    values = torch.tensor([1.0, NAN, 3.0], requires_grad=True)
    masked_mean(values, torch.tensor([1, 0, 1])).backward()
    assert values.grad.tolist() == [0.5, 0.0, 0.5]


def test_masked_whiten_by_hand():
    whitened = masked_whiten(torch.tensor([[1.0, 3.0, 99.0], [5.0, NAN, 0.0]]), torch.tensor([[1, 1, 0], [1, 0, 0]]))
    assert whitened.tolist() == [pytest.approx([-1.0, 0.0, 0.0]), pytest.approx([1.0, 0.0, 0.0])]


def normalise_by_loop(values, groups, mask, by_std, epsilon):
    results = []
    for value, group, kept in zip(values, groups, mask, strict=True):
        members = [v for v, g, m in zip(values, groups, mask, strict=True) if g == group and m]
        if not kept or len(members) < 2:
            results.append(0.0)
            continue
        centred = value - math.fsum(members) / len(members)
        std = statistics.stdev(members)
        results.append((centred / (std + epsilon) if std >= epsilon else 0.0) if by_std else centred)
    return results


@given(
    rows=st.lists(
        st.tuples(st.floats(-100, 100, width=32), st.integers(-2, 2), st.booleans()), min_size=0, max_size=20
    ),
    by_std=st.booleans(),
)
def test_normalising_in_groups_equals_the_loop(rows, by_std):
    values, groups, mask = ([row[position] for row in rows] for position in range(3))
    found = normalise_in_groups(
        torch.tensor(values, dtype=torch.float64),
        torch.tensor(groups, dtype=torch.int64),
        torch.tensor(mask, dtype=torch.bool),
        by_std,
        1e-3,
    )
    assert found.tolist() == pytest.approx(normalise_by_loop(values, groups, mask, by_std, 1e-3), abs=1e-9)


@pytest.mark.parametrize("size", [2, 3, 7, 1000])
def test_equal_float32_values_are_exactly_zero(size):
    values = torch.full((size,), 0.1)
    groups = torch.zeros(size, dtype=torch.int64)
    assert normalise_in_groups(values, groups, torch.ones(size), True, 1e-6).tolist() == [0.0] * size


def test_a_deviation_below_epsilon_is_none():
    values, groups = torch.tensor([0.5, 0.5000005]), torch.zeros(2, dtype=torch.int64)
    assert normalise_in_groups(values, groups, torch.ones(2), True, 1e-6).tolist() == [0.0, 0.0]
    assert normalise_in_groups(values, groups, torch.ones(2), True, 1e-9)[1].item() > 0.7


def test_what_the_mask_hides_neither_counts_nor_spoils():
    values = torch.tensor([1.0, NAN, 3.0])
    found = normalise_in_groups(values, torch.zeros(3, dtype=torch.int64), torch.tensor([1, 0, 1]), False, 1e-6)
    assert found.tolist() == [-1.0, 0.0, 1.0]


def test_sums_to_the_right():
    assert sums_to_the_right(torch.tensor([[1.0, 2.0, 4.0], [0.0, 0.0, 8.0]])).tolist() == [[7, 6, 4], [8, 8, 8]]


def test_the_others_of_a_group():
    values, groups = torch.tensor([1.0, 5.0, 4.0, 9.0]), torch.tensor([2, 0, 2, 2])
    others, has_others = means_of_the_others(values, groups)
    assert others.tolist() == [6.5, 0.0, 5.0, 2.5] and has_others.tolist() == [True, False, True, True]
    assert minus_the_others(values, groups).tolist() == [-5.5, 0.0, -1.0, 6.5]


def test_means_by_weight():
    values, groups = torch.tensor([1.0, 5.0, 4.0]), torch.tensor([2, 0, 2])
    assert weighted_group_means(values, torch.tensor([1, 0, 2]), groups).tolist() == [3.0, 0.0, 3.0]
