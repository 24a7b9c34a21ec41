# SPDX-License-Identifier: Apache-2.0
"""The process group of the `gloo` backend, between machines without GPUs: the trainer's end and an engine's end.

It stands beside torch's default group, which trainer and engines each use for themselves.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
from torch.distributed import BroadcastOptions, PrefixStore, ProcessGroupGloo, TCPStore, Work

from verl.weight_sync.base import NamedWeights
from verl.weight_sync.buckets import buffer_bytes, unpack
from verl.weight_sync.digest import check_digests

_PREFIX = "weight-sync"
_POLL_S = 0.01


@dataclass(frozen=True, slots=True)
class GlooGroupInfo:
    """What an engine must know to join.

    Attributes:
        master_address: Address of the trainer's rank 0.
        master_port: Port of its store.
        rank_offset: Rank of the engine's first process.
        world_size: Ranks of the group.
        timeout_s: Longest wait for the others, and for one broadcast. Unit: seconds.
    """

    master_address: str
    master_port: int
    rank_offset: int
    world_size: int
    timeout_s: float


@dataclass(frozen=True, slots=True)
class GlooBucketInfo:
    """What one broadcast holds; see `Bucket`.

    Attributes:
        names: Parameter names.
        dtype_names: torch dtype names.
        shapes: Full shapes.
        digests: Digest of each tensor; empty when not asked for.
    """

    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]
    digests: list[str] = field(default_factory=list)


class GlooDoor:
    """The trainer's end: a store at which the ranks find each other.

    Example:
        >>> door = GlooDoor("10.0.0.1", timeout_s=600.0)
        >>> info = door.init_info(world_size=3)
        >>> group = door.enter(world_size=3)
    """

    def __init__(self, address: str, timeout_s: float) -> None:
        """Remember the place.

        Args:
            address: This machine, as the engines' machines reach it.
            timeout_s: Longest wait for the others, and for one broadcast. Unit: seconds.
        """
        self._address, self._timeout_s = address, timeout_s
        self._store: TCPStore | None = None
        self._is_closed = threading.Event()

    def init_info(self, world_size: int) -> dict[str, Any]:
        """See `GroupDoor.init_info`."""
        timeout = timedelta(seconds=self._timeout_s)
        self._store = TCPStore(self._address, 0, is_master=True, timeout=timeout, wait_for_workers=False)
        return {
            "master_address": self._address,
            "master_port": self._store.port,
            "world_size": world_size,
            "timeout_s": self._timeout_s,
        }

    def enter(self, world_size: int) -> GlooGroup:
        """See `GroupDoor.enter`; the ranks that did not come are named."""
        assert self._store is not None, "init_info() was not called"
        deadline = time.monotonic() + self._timeout_s
        missing = list(range(1, world_size))
        while missing and time.monotonic() < deadline:
            missing = [rank for rank in missing if not self._store.check([_here(rank)])]
            if missing and self._is_closed.wait(_POLL_S):
                raise RuntimeError("the door was closed")
        if missing:
            raise RuntimeError(f"of {world_size} ranks {missing} did not come in {self._timeout_s:g} s")
        return GlooGroup(self._store, 0, world_size, self._address, self._timeout_s)

    def close(self) -> None:
        """See `GroupDoor.close`."""
        self._is_closed.set()


class GlooGroup:
    """One rank of the group.

    Example:
        >>> group.broadcast(torch.zeros(8, dtype=torch.uint8)).is_done()
    """

    def __init__(self, store: TCPStore, rank: int, world_size: int, address: str, timeout_s: float) -> None:
        """Meet the others.

        Args:
            store: Where the ranks find each other.
            rank: Of this process.
            world_size: Ranks of the group.
            address: This machine, as the others reach it.
            timeout_s: Longest wait for the others, and for one broadcast. Unit: seconds.
        """
        gloo: Any = ProcessGroupGloo  # torch's stubs leave out much of it
        options = gloo._Options()
        options._timeout = timedelta(seconds=timeout_s)
        options._devices = [gloo.create_device(hostname=address)]
        self._timeout_s = timeout_s
        self._store = store
        self._group = gloo(PrefixStore(_PREFIX, store), rank, world_size, options)

    def broadcast(self, flat: torch.Tensor) -> GlooSending:
        """See `BroadcastGroup.broadcast`; on other ranks than 0 the tensor is written to.

        Args:
            flat: [B] uint8 on the CPU.
        """
        options = BroadcastOptions()
        options.rootRank = 0
        options.timeout = timedelta(seconds=self._timeout_s)
        return GlooSending(self._group.broadcast([flat], options))

    def close(self) -> None:
        """See `BroadcastGroup.close`."""
        self._group.abort()


class GlooSending:
    """A broadcast under way."""

    def __init__(self, work: Work) -> None:
        """Watch a broadcast.

        Args:
            work: As gloo gave it.
        """
        self._work = work

    def is_done(self) -> bool:
        """See `Sending.is_done`."""
        if not self._work.is_completed():
            return False
        self._work.wait()
        return True

    def wait(self) -> None:
        """Wait for its end; raises `RuntimeError` when the sender is gone or silent."""
        self._work.wait()


class GlooReceiver:
    """An engine process's end of the group.

    Example:
        >>> receiver = GlooReceiver(info, rank_in_engine=0)
        >>> model.load_weights(receiver.receive(bucket_info))
    """

    def __init__(self, info: GlooGroupInfo, rank_in_engine: int) -> None:
        """Join the group.

        Args:
            info: Where and how.
            rank_in_engine: Of this process among those of its engine (tensor parallel).

        Raises:
            RuntimeError: The trainer cannot be reached, or not all ranks came in time.
        """
        timeout = timedelta(seconds=info.timeout_s)
        store = TCPStore(info.master_address, info.master_port, timeout=timeout, wait_for_workers=False)
        rank = info.rank_offset + rank_in_engine
        store.set(_here(rank), "")
        own = own_address(info.master_address, info.master_port)
        self._group = GlooGroup(store, rank, info.world_size, own, info.timeout_s)

    def receive(self, info: GlooBucketInfo) -> Iterator[tuple[str, torch.Tensor]]:
        """Take in one bucket; returns when it is here, the digests are compared while the tensors are read.

        Args:
            info: What the bucket holds.

        Returns:
            `(name, tensor)` pairs. Raises `WeightDigestError` where bytes differ from those sent.
        """
        flat = torch.empty(buffer_bytes(info.dtype_names, info.shapes), dtype=torch.uint8)
        self._group.broadcast(flat).wait()
        weights: NamedWeights = unpack(flat, info.names, info.dtype_names, info.shapes)
        if info.digests:
            weights = check_digests(weights, dict(zip(info.names, info.digests, strict=True)))
        return iter(weights)

    def close(self) -> None:
        """Leave the group."""
        self._group.close()


def _here(rank: int) -> str:
    return f"here/{rank}"


def own_address(peer: str, port: int) -> str:
    """Find the address under which this machine speaks to another one; nothing is sent.

    Args:
        peer: Name or address of the other machine.
        port: Any of its ports.
    """
    family, kind, _, _, where = socket.getaddrinfo(peer, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(where)
        address: str = probe.getsockname()[0]
    return address
