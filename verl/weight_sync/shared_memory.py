# SPDX-License-Identifier: Apache-2.0
"""Sender of the `shared_memory` backend: each node's leader writes one bundle file, the engines of that node map it.

Every rank iterates the weights, since gathering a sharded tensor is a collective; ranks that are not their node's
leader drop the tensors at once.
"""

from __future__ import annotations

import os
import time
from collections import deque
from pathlib import Path

from verl.weight_sync.base import NamedWeights, SyncReport, WeightSyncClient
from verl.weight_sync.bundle import bundle_directory, write_bundle


class SharedMemorySender:
    """Writes weights to the node's shared memory.

    Example:
        >>> sender = SharedMemorySender(client, is_leader=True)
        >>> report = sender.send(engine.named_weights(torch.float32), version=1, verify=True)
    """

    def __init__(self, client: WeightSyncClient | None, is_leader: bool, directory: Path | None = None) -> None:
        """Prepare the sender.

        Args:
            client: The engines of this node; None on ranks that lead no node, or when the node has no engine.
            is_leader: Whether this rank writes for its node.
            directory: Folder of the bundle file; None for the node's shared memory.
        """
        self._client = client if is_leader else None
        self._path = (directory or bundle_directory()) / f"verl-weights-{os.getpid()}.bin"
        if self._client is not None:
            self._client.init_transfer({})

    def send(self, weights: NamedWeights, version: int, verify: bool) -> SyncReport:
        """See `WeightSender.send`."""
        started = time.perf_counter()
        if self._client is None:
            deque(weights, maxlen=0)  # take part in the collectives, keep nothing
            return SyncReport(version, 0, 0, time.perf_counter() - started, 0.0)
        manifest, num_bytes = write_bundle(weights, self._path, with_digests=verify)
        written = time.perf_counter()
        try:
            self._client.start_update()
            self._client.update(manifest.to_dict())
            self._client.finish_update(version)
        finally:
            self._path.unlink(missing_ok=True)
        loaded_s = time.perf_counter() - written
        return SyncReport(version, len(manifest.names), num_bytes, written - started, loaded_s, verify)
