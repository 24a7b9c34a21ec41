# SPDX-License-Identifier: Apache-2.0
"""The rate that torch reaches on a large matrix product on this machine: what a model's speed is held against."""

from __future__ import annotations

import time

import torch

from verl.utils.device import synchronize


def matrix_rate(device: torch.device, dtype: torch.dtype, size: int | None = None) -> float:
    """Multiply two square matrices over and over; the best of five timings counts.

    Args:
        device: Where.
        dtype: Of the matrices.
        size: Their width; default 8192 on a GPU, 1024 on a CPU.

    Returns:
        Floating-point operations per second.
    """
    size = size or (8192 if device.type == "cuda" else 1024)
    passes = 20 if device.type == "cuda" else 3
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    left @ right
    best_s = float("inf")
    for _ in range(5):
        synchronize(device)
        started_s = time.perf_counter()
        for _ in range(passes):
            left @ right
        synchronize(device)
        best_s = min(best_s, time.perf_counter() - started_s)
    return passes * 2.0 * size**3 / best_s
