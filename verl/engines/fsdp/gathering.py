# SPDX-License-Identifier: Apache-2.0
"""Whole tensors out of shards, many small ones in one collective. It knows no model.

A collective per tensor costs more than the bytes of a small tensor: on gloo some tenths of a millisecond each.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, Replicate, Shard

GROUP_BYTES = 16 << 20  # small against any large model's embedding, large against the cost of a collective


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A tensor to be gathered: its rows lie on the ranks of one group, each rank's as many but for the last ones."""

    name: str
    local: torch.Tensor
    shape: torch.Size
    group: dist.ProcessGroup
    num_ranks: int

    @property
    def rows_each(self) -> int:
        """Rows of the first rank, and of every slot in the gathered buffer."""
        return -(-self.shape[0] // self.num_ranks)

    @property
    def row_numel(self) -> int:
        return math.prod(self.shape[1:])

    @property
    def slot_numel(self) -> int:
        return self.rows_each * self.row_numel

    def rows_of(self, rank: int) -> int:
        return max(0, min(self.rows_each, self.shape[0] - rank * self.rows_each))


def gather_whole(
    named: Iterable[tuple[str, torch.Tensor]], group_bytes: int = GROUP_BYTES
) -> Iterator[tuple[str, torch.Tensor]]:
    """Make tensors whole on every rank; all ranks must run the iterator to its end together.

    Args:
        named: Names with tensors, sharded (along the first dimension) or not, the same on every rank.
        group_bytes: Tensors are gathered together until their whole bytes exceed this. Unit: bytes.

    Yields:
        Names with whole, detached tensors, in the same order. Valid until the next training step: what one rank holds
        whole already may be handed on without a copy.
    """
    waiting: list[_Waiting] = []
    waiting_bytes = 0
    for name, tensor in named:
        each = _as_waiting(name, tensor.detach(), group_bytes)
        if isinstance(each, torch.Tensor):
            yield from _gather(waiting)
            waiting, waiting_bytes = [], 0
            yield name, each
            continue
        if waiting and (
            each.group.group_name != waiting[0].group.group_name or each.local.dtype != waiting[0].local.dtype
        ):
            yield from _gather(waiting)
            waiting, waiting_bytes = [], 0
        waiting.append(each)
        waiting_bytes += each.slot_numel * each.num_ranks * each.local.element_size()
        if waiting_bytes > group_bytes:
            yield from _gather(waiting)
            waiting, waiting_bytes = [], 0
    yield from _gather(waiting)


def _as_waiting(name: str, tensor: torch.Tensor, group_bytes: int) -> _Waiting | torch.Tensor:
    """What is to be gathered; the whole tensor where nothing is, where it is large, or sharded in some other way."""
    if not isinstance(tensor, DTensor):
        return tensor
    mesh = tensor.device_mesh
    sharded = [dim for dim, placement in enumerate(tensor.placements) if not isinstance(placement, Replicate)]
    local = tensor.to_local()
    if all(mesh.size(dim) == 1 for dim in sharded):
        return local
    is_large = tensor.numel() * tensor.dtype.itemsize > group_bytes
    if is_large or len(sharded) > 1 or tensor.placements[sharded[0]] != Shard(0):
        whole: torch.Tensor = tensor.full_tensor()
        return whole
    return _Waiting(name, local, tensor.shape, mesh.get_group(sharded[0]), mesh.size(sharded[0]))


def _gather(waiting: list[_Waiting]) -> Iterator[tuple[str, torch.Tensor]]:
    """One collective for all of them: every rank's slots end to end, rank after rank."""
    if not waiting:
        return
    width = sum(each.slot_numel for each in waiting)
    mine = waiting[0].local.new_zeros(width)
    start = 0
    for each in waiting:
        mine[start : start + each.local.numel()] = each.local.reshape(-1)
        start += each.slot_numel
    rows = [torch.empty_like(mine) for _ in range(waiting[0].num_ranks)]
    dist.all_gather(rows, mine, group=waiting[0].group)
    start = 0
    for each in waiting:
        parts = [row[start:][: each.rows_of(rank) * each.row_numel] for rank, row in enumerate(rows)]
        yield each.name, torch.cat(parts).view(each.shape)
        start += each.slot_numel
