# SPDX-License-Identifier: Apache-2.0
"""Equality by content."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from verl.utils.deep_equal import is_deep_equal

NAN = float("nan")


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (torch.tensor([1.0, NAN]), torch.tensor([1.0, NAN])),
        (torch.tensor([True]), torch.tensor([True])),
        (torch.zeros(0, 3), torch.zeros(0, 3)),
        (np.array(["a", "b"]), np.array(["a", "b"])),
        (np.array([NAN]), np.array([NAN])),
        ({"a": [1, (2, np.zeros(2))]}, {"a": [1, (2, np.zeros(2))]}),
        (NAN, float("nan")),
    ],
)
def test_equal_contents(one, two):
    assert is_deep_equal(one, two)


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (torch.tensor([1.0, NAN]), torch.tensor([NAN, 1.0])),
        (torch.zeros(2), torch.zeros(2, dtype=torch.float64)),
        (torch.zeros(2), torch.zeros(1)),
        (torch.zeros(2), np.zeros(2)),
        (np.zeros(2), np.zeros((1, 2))),
        ({"a": 1}, {"b": 1}),
        ({"a": [1, 2]}, {"a": [1, 3]}),
        ([1, 2], [1, 2, 3]),
        ([1], (1,)),
        (1, True),
        ("a", None),
    ],
)
def test_different_contents(one, two):
    assert not is_deep_equal(one, two) and not is_deep_equal(two, one)
