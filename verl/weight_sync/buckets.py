# SPDX-License-Identifier: Apache-2.0
"""Named tensors laid end to end in flat buffers of a given size, and taken out again. Knows no transport.

The layout is the one of vLLM's packed NCCL transfer: bytes without gaps, a bucket ends with the tensor that fills it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from verl.weight_sync.base import NamedWeights


@dataclass(frozen=True, slots=True)
class Bucket:
    """Some tensors of one sync in one buffer.

    Attributes:
        flat: [B] uint8, the tensors' bytes end to end.
        names: Parameter names, in the order of the bytes.
        dtype_names: torch dtype names without the `torch.` prefix.
        shapes: Full shapes.
        is_last: Whether no tensor follows.
    """

    flat: torch.Tensor
    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]
    is_last: bool


def pack(weights: NamedWeights, bucket_bytes: int) -> Iterator[Bucket]:
    """Fill buckets with tensors.

    Args:
        weights: `(name, tensor)` pairs on one device; iterated once.
        bucket_bytes: A bucket ends with the tensor that makes it larger than this. Unit: bytes.

    Yields:
        Buckets on the tensors' device, at least one tensor in each; none when there are no tensors.
    """
    waiting: list[tuple[str, torch.Tensor]] = []
    waiting_bytes = 0
    for name, tensor in weights:
        if waiting_bytes > bucket_bytes:
            yield _bucket(waiting, is_last=False)
            waiting, waiting_bytes = [], 0
        waiting.append((name, tensor.detach()))
        waiting_bytes += tensor.numel() * tensor.element_size()
    if waiting:
        yield _bucket(waiting, is_last=True)


def buffer_bytes(dtype_names: list[str], shapes: list[list[int]]) -> int:
    """Count the bytes of a bucket's buffer.

    Args:
        dtype_names: As in `Bucket`.
        shapes: As in `Bucket`.
    """
    return sum(_num_bytes(name, shape) for name, shape in zip(dtype_names, shapes, strict=True))


def unpack(
    flat: torch.Tensor, names: list[str], dtype_names: list[str], shapes: list[list[int]]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Take the tensors out of a buffer.

    Args:
        flat: [B] uint8.
        names: As in `Bucket`.
        dtype_names: As in `Bucket`.
        shapes: As in `Bucket`.

    Yields:
        `(name, tensor)`; a view of the buffer wherever the dtype's alignment allows it.
    """
    start = 0
    for name, dtype_name, shape in zip(names, dtype_names, shapes, strict=True):
        end = start + _num_bytes(dtype_name, shape)
        dtype = getattr(torch, dtype_name)
        raw = flat[start:end]
        if start % dtype.itemsize:
            raw = raw.clone()
        yield name, raw.view(dtype).view(shape)
        start = end


def _bucket(tensors: list[tuple[str, torch.Tensor]], is_last: bool) -> Bucket:
    return Bucket(
        flat=torch.cat([tensor.contiguous().view(-1).view(torch.uint8) for _, tensor in tensors]),
        names=[name for name, _ in tensors],
        dtype_names=[str(tensor.dtype).removeprefix("torch.") for _, tensor in tensors],
        shapes=[list(tensor.shape) for _, tensor in tensors],
        is_last=is_last,
    )


def _num_bytes(dtype_name: str, shape: list[int]) -> int:
    return math.prod(shape) * getattr(torch, dtype_name).itemsize
