# SPDX-License-Identifier: Apache-2.0
"""What a model's speed is held against: the rate of a large matrix product here, and the data sheet's."""

from __future__ import annotations

import time

import torch

from verl.utils.device import synchronize

DATA_SHEET = {"H200": 989.4e12, "H100 80GB HBM3": 989.4e12, "A100-SXM": 312e12}
"""Dense 16-bit operations per second by a part of the GPU's name. Source: NVIDIA's data sheets."""


def data_sheet_rate(name: str, dtype: torch.dtype) -> float | None:
    """Look the promised rate up: model FLOPs utilisation (MFU) is a share of it.

    Args:
        name: Of the GPU, as torch says it.
        dtype: Of the matrices.

    Returns:
        Floating-point operations per second; None where it is not known.
    """
    known = (rate for part, rate in DATA_SHEET.items() if part in name)
    return next(known, None) if dtype in (torch.bfloat16, torch.float16) else None


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
