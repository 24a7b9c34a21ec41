# SPDX-License-Identifier: Apache-2.0
"""Sender of the `ipc` backend: vLLM's own CUDA IPC transfer between a trainer and engines on the same GPUs.

Every rank shares its gathered tensors by handle, rank 0 speaks to the engines. Untested until run on a GPU machine
that has vLLM.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo, IPCTrainerWeightTransferEngine

from verl.weight_sync.base import NamedWeights, SyncReport, WeightSyncClient


class IPCSender:
    """Sends weights by CUDA IPC handles.

    Example:
        >>> sender = IPCSender(client, is_leader=True)
        >>> report = sender.send(WeightStream(lambda: engine.named_weights(torch.bfloat16)), version=1, verify=False)
    """

    def __init__(self, client: WeightSyncClient | None, is_leader: bool) -> None:
        """Prepare the sender; collective over the trainer's ranks.

        Args:
            client: All engines; None on every rank but 0.
            is_leader: Whether this is rank 0.
        """
        self._source = _CurrentWeights()
        self._client = _ClientAdapter(client)
        self._engine = IPCTrainerWeightTransferEngine.trainer_init(
            IPCTrainerInitInfo(rank=0 if is_leader else 1, packed=True), client=self._client, source=self._source
        )

    def send(self, weights: NamedWeights, version: int, verify: bool) -> SyncReport:
        """See `WeightSender.send`; `verify` is not acted on: no digest is compared here, and the report says so."""
        started = time.perf_counter()
        self._source.weights, self._source.num_bytes, self._source.num_tensors = weights, 0, 0
        self._client.version = version
        self._engine.send_weights()
        seconds = time.perf_counter() - started
        return SyncReport(version, self._source.num_tensors, self._source.num_bytes, seconds, 0.0)


class _CurrentWeights(WeightSource):
    """The weights of the sync in progress, counted on the way."""

    weights: NamedWeights = ()
    num_bytes = 0
    num_tensors = 0

    def metadata(self) -> list[ParamMeta]:
        return [ParamMeta(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in self.weights]

    def __iter__(self) -> Any:
        for name, tensor in self.weights:
            self.num_bytes += tensor.numel() * tensor.element_size()
            self.num_tensors += 1
            yield name, tensor if tensor.is_cuda else tensor.to(torch.device("cuda", torch.cuda.current_device()))


class _ClientAdapter:
    """vLLM's names for our messages."""

    version = 0

    def __init__(self, client: WeightSyncClient | None) -> None:
        self._client = client

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._known.init_transfer(init_info)

    def start_weight_update(self) -> None:
        self._known.start_update()

    def update_weights(self, update_info: Any) -> None:
        self._known.update(update_info)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._known.finish_update(self.version)

    @property
    def _known(self) -> WeightSyncClient:
        assert self._client is not None, "only rank 0 speaks to the engines"
        return self._client
