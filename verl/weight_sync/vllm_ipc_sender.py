# SPDX-License-Identifier: Apache-2.0
"""Sender of the `ipc` backend: vLLM's own CUDA IPC transfer between a trainer and engines on the same GPUs.

Every rank shares its gathered tensors by handle, rank 0 speaks to the engines. Untested until run on a GPU machine
that has vLLM.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Iterator
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo, IPCTrainerWeightTransferEngine

from verl.weight_sync.base import NamedWeights, SyncReport, WeightSyncClient
from verl.weight_sync.sent import SentWeights, take_part


class IPCSender:
    """Sends weights by CUDA IPC handles.

    Example:
        >>> sender = IPCSender(client, is_leader=True, bucket_bytes=1 << 29)
        >>> report = sender.send(WeightStream(lambda: engine.named_weights(torch.bfloat16)), version=1, verify=True)
    """

    def __init__(self, client: WeightSyncClient | None, is_leader: bool, bucket_bytes: int) -> None:
        """Prepare the sender; collective over the trainer's ranks.

        Args:
            client: All engines; None on every rank but 0.
            is_leader: Whether this is rank 0.
            bucket_bytes: Size of the shared buffer; it grows to the largest tensor. Unit: bytes.
        """
        self._is_leader, self._bucket_bytes = is_leader, bucket_bytes
        self._largest_bytes: int | None = None
        self._source = CurrentWeights(torch.device("cuda", torch.cuda.current_device()))
        self._client = ClientAdapter(client, self._source)
        self._engine = IPCTrainerWeightTransferEngine.trainer_init(
            IPCTrainerInitInfo(rank=0 if is_leader else 1, packed=True), client=self._client, source=self._source
        )

    def send(self, weights: NamedWeights, version: int, verify: bool) -> SyncReport:
        """See `WeightSender.send`; the first time the weights are gathered once more, to find the largest tensor.

        Args:
            weights: Can be iterated more than once; iterating is a collective over trainer ranks.
            version: Policy version after this sync.
            verify: Have the engines compare a digest of every tensor they receive with rank 0's.
        """
        if self._largest_bytes is None:
            self._largest_bytes = _largest(weights, version)
        # vLLM's buffer must hold the largest tensor whole, or it refuses to send it
        self._engine.packed_buffer_size_bytes = max(self._bucket_bytes, self._largest_bytes)
        started = time.perf_counter()
        sent = SentWeights(weights, verify and self._is_leader)
        self._source.sent, self._client.version = sent, version
        self._engine.send_weights()
        return sent.report(version, started)


class CurrentWeights(WeightSource):
    """The weights of the sync in progress, on the device from which they are shared."""

    def __init__(self, device: torch.device) -> None:
        """Remember the device.

        Args:
            device: Where the tensors must lie.
        """
        self._device = device
        self.sent = SentWeights((), with_digests=False)

    def metadata(self) -> list[ParamMeta]:
        """Refuse: the packed transfer does not ask, and an answer would cost a second gathering."""
        raise NotImplementedError("the packed transfer sends names and shapes with each chunk")

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the weights once."""
        for name, tensor in self.sent:
            yield name, tensor.to(self._device)


class ClientAdapter:
    """vLLM's names for our messages; adds the digests of the tensors that an update names."""

    def __init__(self, client: WeightSyncClient | None, source: CurrentWeights) -> None:
        """Remember both.

        Args:
            client: All engines; None on ranks that do not speak to them.
            source: Where the digests are.
        """
        self._client, self._source = client, source
        self.version = 0

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """See `WeightSyncClient.init_transfer`."""
        self._known.init_transfer(init_info)

    def start_weight_update(self) -> None:
        """See `WeightSyncClient.start_update`."""
        self._known.start_update()

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """See `WeightSyncClient.update`; the handles go as bytes, see `CheckedIPCUpdateInfo`."""
        digests = self._source.sent.digests
        ours = {
            "digests": [digests[name] for name in update_info["names"] if digests],
            "handles": pickle.dumps(update_info["ipc_handles"]),
            "ipc_handles": None,
        }
        self._known.update(update_info | ours)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """See `WeightSyncClient.finish_update`."""
        self._known.finish_update(self.version)

    @property
    def _known(self) -> WeightSyncClient:
        assert self._client is not None, "only rank 0 speaks to the engines"
        return self._client


def _largest(weights: NamedWeights, version: int) -> int:
    sent = SentWeights(weights, with_digests=False)
    take_part(sent, version)
    return sent.largest_bytes
