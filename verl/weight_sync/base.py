# SPDX-License-Identifier: Apache-2.0
"""The contract of weight sync: who sends, who receives, what a sync reports.

A sync is `start_update`, one or more `update(payload)`, `finish_update(version)`, spoken by a `WeightSender`
(trainer side) to a `WeightSyncClient` (engine side); where one payload is all there is, `sync` says the three in one
message. Neither side knows what the other is made of: the client may be a Ray actor, an HTTP server or an object in
the same process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch

NamedWeights = Iterable[tuple[str, torch.Tensor]]
"""Hugging Face parameter names with full (unsharded) tensors. Iterating it may be a collective over trainer ranks."""


class WeightSyncFailedError(RuntimeError):
    """An engine died, failed or did not answer in the middle of a sync.

    Engines may now hold weights of different versions, or half of a version: no rollout may start, the run has to end.
    """


@dataclass(frozen=True, slots=True)
class WeightStream:
    """Named weights that can be iterated more than once.

    Attributes:
        open: Starts a fresh pass, e.g. `lambda: engine.named_weights(torch.bfloat16)`.
    """

    open: Callable[[], Iterator[tuple[str, torch.Tensor]]]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Start a fresh pass."""
        return self.open()


@dataclass(frozen=True, slots=True)
class SyncReport:
    """What one sync cost, on the sending rank.

    Attributes:
        version: Policy version now held by the engines.
        num_tensors: Tensors sent.
        num_bytes: Bytes sent, each tensor counted once however many engines read it.
        gather_s: Seconds to gather the tensors and to write or pack them, digests left out.
        load_s: Seconds for which the sender then waited until the engines had taken them in.
        digests_compared: Whether the engines compared a digest of every tensor with the sender's.
        digest_s: Seconds to compute the sender's digests; what the engines need for theirs is part of `load_s`.
    """

    version: int
    num_tensors: int
    num_bytes: int
    gather_s: float
    load_s: float
    digests_compared: bool = False
    digest_s: float = 0.0

    @property
    def bytes_per_s(self) -> float:
        """Bytes per second over the whole sync; 0 when nothing was sent."""
        total_s = self.gather_s + self.load_s + self.digest_s
        return self.num_bytes / total_s if total_s > 0 else 0.0


class WeightSyncClient(Protocol):
    """Engine side of a sync. Every call returns when all engines behind the client are done, or raises."""

    def init_transfer(self, init_info: dict[str, Any]) -> None:
        """Prepare the engines for a backend; called once before the first sync."""

    def start_update(self) -> None:
        """Pause generation and make the engines ready to take weights."""

    def update(self, payload: dict[str, Any]) -> None:
        """Hand one chunk of weights (or where to find it) to the engines."""

    def finish_update(self, version: int) -> None:
        """End the update, drop caches computed with old weights, resume generation."""

    def sync(self, payload: dict[str, Any], version: int) -> None:
        """`start_update`, one `update` and `finish_update` in one message."""


class GroupSyncClient(WeightSyncClient, Protocol):
    """Engines that join a process group in which the sender is rank 0."""

    @property
    def num_receivers(self) -> int:
        """Ranks of the group behind this client: the tensor-parallel ranks of all engines."""

    def init_group(self, init_info: dict[str, Any]) -> None:
        """Like `init_transfer`; each engine also gets `rank_offset`, the group's rank of its first process."""


class WeightSender(Protocol):
    """Trainer side of a sync. Called on every trainer rank; only node leaders write and speak to the client."""

    def send(self, weights: NamedWeights, version: int, verify: bool) -> SyncReport:
        """Send all weights.

        Args:
            weights: The policy's full weights; iterated once, on every rank.
            version: Policy version after this sync.
            verify: Have the engines compare a digest of every received tensor with the sender's.

        Returns:
            The cost of this sync on this rank.
        """
