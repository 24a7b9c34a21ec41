# SPDX-License-Identifier: Apache-2.0
"""Equality by content of nested values with tensors and arrays in them; knows nothing of batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


def is_deep_equal(one: Any, two: Any) -> bool:
    """Compare two values by content; NaN equals NaN, and values of different type, dtype or shape differ.

    Args:
        one: Tensor, numpy array (object arrays of arrays too), dict, list, tuple or any comparable object.
        two: The same.

    Returns:
        Whether they hold the same content.
    """
    if one is two:
        return True
    if isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
        if one.dtype != two.dtype or one.shape != two.shape:
            return False
        two = two.to(one.device)
        return bool(torch.all((one == two) | (torch.isnan(one) & torch.isnan(two))))
    if isinstance(one, np.ndarray) and isinstance(two, np.ndarray):
        if one.dtype != two.dtype or one.shape != two.shape:
            return False
        if one.dtype == object:
            return all(map(is_deep_equal, one.ravel(), two.ravel()))
        return np.array_equal(one, two, equal_nan=one.dtype.kind in "fc")
    if type(one) is not type(two):
        return False
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(is_deep_equal(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(is_deep_equal, one, two))
    return bool(one == two) or (one != one and two != two)
