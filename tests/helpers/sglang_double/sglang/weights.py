# SPDX-License-Identifier: Apache-2.0
"""The double's side of a process group, made from the same calls of torch as SGLang makes its own."""

from __future__ import annotations

import hashlib
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import _new_process_group_helper, _world, rendezvous

_TIMEOUT = timedelta(minutes=1)


def join(body: dict[str, Any]) -> Any:
    """Join a process group beside the server's own."""
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    address = f"tcp://{body['master_address']}:{body['master_port']}"
    store, rank, world_size = next(rendezvous(address, body["rank_offset"], body["world_size"]))
    named = dist.PrefixStore(body["group_name"], store)
    backend, name = dist.Backend(body["backend"]), body["group_name"]
    group, _ = _new_process_group_helper(world_size, rank, [], backend, named, group_name=name, timeout=_TIMEOUT)
    _world.pg_group_ranks[group] = {index: index for index in range(world_size)}
    return group


def receive(body: dict[str, Any], group: Any, spoils: bool) -> tuple[dict[str, float], dict[str, str]]:
    """Take in the tensors of one update; gives the sum of each, and the digest that SGLang computes on a host."""
    sums, digests = {}, {}
    for name, dtype, shape in zip(body["names"], body["dtypes"], body["shapes"], strict=True):
        weight = torch.empty(shape, dtype=getattr(torch, dtype))
        dist.broadcast(weight, src=0, group=group)
        if spoils:
            weight.view(torch.uint8)[..., 0] ^= 1
        sums[name] = float(weight.double().sum())
        raw = weight.reshape(-1).view(torch.uint8).numpy()
        digests[name] = hashlib.sha256(memoryview(raw)).hexdigest()[:16]
    return sums, digests
