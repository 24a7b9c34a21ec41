# SPDX-License-Identifier: Apache-2.0
"""Weights on their way out: counted, timed and, when asked for, digested. Every backend's sender reads through this."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator

import torch

from verl.weight_sync.base import NamedWeights, SyncReport
from verl.weight_sync.digest import digest_of


class SentWeights:
    """One pass over the weights of a sync.

    Example:
        >>> sent = SentWeights(engine.named_weights(torch.bfloat16), with_digests=True)
        >>> for name, tensor in sent: ...
        >>> sent.num_bytes, sent.digests["model.norm.weight"]
    """

    def __init__(self, weights: NamedWeights, with_digests: bool) -> None:
        """Prepare the pass.

        Args:
            weights: Iterated once; iterating it may be a collective over trainer ranks.
            with_digests: Compute a digest of every tensor.
        """
        self._weights, self._with_digests = weights, with_digests
        self.num_tensors = 0
        self.num_bytes = 0
        self.largest_bytes = 0
        self.gather_s = 0.0
        self.digest_s = 0.0
        self.digests: dict[str, str] = {}

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Pass the tensors on; seconds outside of `next` are not this object's."""
        started = time.perf_counter()
        for name, tensor in self._weights:
            gathered = time.perf_counter()
            self.gather_s += gathered - started
            self._note(name, tensor)
            self.digest_s += time.perf_counter() - gathered
            yield name, tensor
            started = time.perf_counter()
        self.gather_s += time.perf_counter() - started

    def report(self, version: int, started_s: float, gather_s: float | None = None) -> SyncReport:
        """Say what the sync cost; called when it has ended.

        Args:
            version: Policy version the engines now hold.
            started_s: When it began, `time.perf_counter()`.
            gather_s: Seconds of gathering and packing without digests; None for those of gathering alone.
        """
        gather_s = self.gather_s if gather_s is None else gather_s
        load_s = time.perf_counter() - started_s - gather_s - self.digest_s
        return SyncReport(
            version, self.num_tensors, self.num_bytes, gather_s, load_s, self._with_digests, self.digest_s
        )

    def _note(self, name: str, tensor: torch.Tensor) -> None:
        num_bytes = tensor.numel() * tensor.element_size()
        self.num_tensors += 1
        self.num_bytes += num_bytes
        self.largest_bytes = max(self.largest_bytes, num_bytes)
        if self._with_digests:
            self.digests[name] = digest_of(tensor)


def take_part(weights: NamedWeights, version: int) -> SyncReport:
    """Iterate weights for the sake of the other ranks and keep nothing; what ranks do that send nothing.

    Args:
        weights: Iterated once.
        version: Policy version after the sync.
    """
    started = time.perf_counter()
    deque(weights, maxlen=0)
    return SyncReport(version, 0, 0, time.perf_counter() - started, 0.0)
