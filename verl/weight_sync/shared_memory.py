# SPDX-License-Identifier: Apache-2.0
"""Sender of the `shared_memory` backend: each node's leader writes one bundle, the engines of that node map it.

Leader and engines keep the memory mapped from sync to sync. Its file loses its name after the first one, so that
nothing is left behind however the run ends.

Every rank iterates the weights, since gathering a sharded tensor is a collective; ranks that are not their node's
leader drop the tensors at once.
"""

from __future__ import annotations

import os
import time
import uuid
from pathlib import Path

from verl.weight_sync.base import NamedWeights, SyncReport, WeightSyncClient
from verl.weight_sync.bundle import KeptBundle, bundle_directory
from verl.weight_sync.sent import SentWeights, take_part


class SharedMemorySender:
    """Writes weights to the node's shared memory.

    Example:
        >>> sender = SharedMemorySender(client, is_leader=True)
        >>> report = sender.send(engine.named_weights(torch.float32), version=1, verify=True)
    """

    def __init__(
        self,
        client: WeightSyncClient | None,
        is_leader: bool,
        directory: Path | None = None,
    ) -> None:
        """Prepare the sender.

        Args:
            client: The engines of this node; None on ranks that lead no node, or when the node has no engine.
            is_leader: Whether this rank writes for its node.
            directory: Folder of the bundle file; None for the node's shared memory.
        """
        self._client = client if is_leader else None
        name = f"verl-weights-{os.getpid()}-{uuid.uuid4().hex[:8]}.bin"
        self._bundle = KeptBundle((directory or bundle_directory()) / name)
        if self._client is not None:
            self._client.init_transfer({})

    def send(self, weights: NamedWeights, version: int, verify: bool) -> SyncReport:
        """See `WeightSender.send`."""
        if self._client is None:
            return take_part(weights, version)
        started = time.perf_counter()
        sent = SentWeights(weights, verify)
        manifest = self._bundle.write(sent)
        write_s = time.perf_counter() - started - sent.digest_s
        try:
            self._client.sync(manifest.to_dict(), version)
        finally:
            self._bundle.hide()
        return sent.report(version, started, write_s)
