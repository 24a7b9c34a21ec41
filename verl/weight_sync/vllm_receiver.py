# SPDX-License-Identifier: Apache-2.0
"""vLLM worker side of the backends `shared_memory` and `gloo`: reloads the model from a file or from broadcasts.

Runs inside vLLM's engine processes and knows nothing of the trainer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.mtp_validation import disable_mtp_completeness_check
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from verl.weight_sync.base import NamedWeights
from verl.weight_sync.bundle import WeightManifest, read_bundle
from verl.weight_sync.gloo_group import GlooBucketInfo, GlooGroupInfo, GlooReceiver


@dataclass
class SharedMemoryInitInfo(WeightTransferInitInfo):
    """Nothing to agree on: the file's path comes with each update."""


@dataclass
class SharedMemoryUpdateInfo(WeightTransferUpdateInfo):
    """A `WeightManifest`, field by field."""

    path: str
    names: list[str]
    dtypes: list[str]
    shapes: list[list[int]]
    offsets: list[int]
    digests: list[str] = field(default_factory=list)


@dataclass
class GlooInitInfo(WeightTransferInitInfo):
    """A `GlooGroupInfo`, field by field."""

    master_address: str
    master_port: int
    rank_offset: int
    world_size: int
    timeout_s: float


@dataclass
class GlooUpdateInfo(WeightTransferUpdateInfo):
    """A `GlooBucketInfo`, field by field."""

    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]
    digests: list[str] = field(default_factory=list)


class ReloadingEngine(WeightTransferEngine[Any, Any]):
    """What both receivers have in common: on a CPU, weights come in the names and shapes of the checkpoint."""

    def start_weight_update(self) -> None:
        """Put the model's layers back into the state in which a checkpoint can be loaded."""
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Load some weights. Overrides the base method, which synchronises an accelerator that a CPU build lacks."""
        self.receive_weights(self.parse_update_info(update_info))

    def finish_weight_update(self) -> None:
        """Let the layers post-process their new weights."""
        finalize_layerwise_reload(self.model, self.model_config)
        refresh_tied_heads(self.model)

    def load(self, weights: NamedWeights) -> None:
        """Load tensors as vLLM loads a checkpoint; which of them are missing is not its question.

        Args:
            weights: Named as in the checkpoint.
        """
        with disable_mtp_completeness_check():
            self.model.load_weights(weights)


class SharedMemoryWeightTransferEngine(ReloadingEngine):
    """Receives weights through a file in the node's shared memory."""

    init_info_cls = SharedMemoryInitInfo
    update_info_cls = SharedMemoryUpdateInfo

    def init_transfer_engine(self, init_info: SharedMemoryInitInfo) -> None:
        """Nothing to set up."""

    def receive_weights(self, update_info: SharedMemoryUpdateInfo) -> None:
        """Map the bundle and load it; raises `WeightDigestError` when bytes differ from those sent."""
        self.load(read_bundle(WeightManifest(**vars(update_info))))

    def shutdown(self) -> None:
        """Nothing is held between updates."""


class GlooWeightTransferEngine(ReloadingEngine):
    """Receives weights in broadcasts from policy rank 0."""

    init_info_cls = GlooInitInfo
    update_info_cls = GlooUpdateInfo
    _receiver: GlooReceiver | None = None

    def init_transfer_engine(self, init_info: GlooInitInfo) -> None:
        """Join the process group; returns when all ranks are there."""
        self._receiver = GlooReceiver(GlooGroupInfo(**vars(init_info)), self.parallel_config.rank)

    def receive_weights(self, update_info: GlooUpdateInfo) -> None:
        """Receive one bucket and load it; raises `WeightDigestError` when bytes differ from those sent."""
        if self._receiver is None:
            raise RuntimeError("weight sync: the engine was not told to join the trainer's process group")
        self.load(self._receiver.receive(GlooBucketInfo(**vars(update_info))))

    def shutdown(self) -> None:
        """Leave the process group."""
        if self._receiver is not None:
            self._receiver.close()
            self._receiver = None


def refresh_tied_heads(model: torch.nn.Module) -> None:
    """Repack output heads that share the input embedding.

    On CPU vLLM packs the head's weight into a layout of its own. Layerwise reload visits the embedding only, so a tied
    head would go on with the old weights (log-probs off by several nats) without any error.

    Args:
        model: vLLM's model; nothing happens when its embeddings are not tied.
    """
    config = getattr(model, "config", None)
    if not getattr(config, "tie_word_embeddings", False):
        return
    embedding = getattr(getattr(model, "model", None), "embed_tokens", None)
    for module in model.modules():
        if isinstance(module, ParallelLMHead) and embedding is not None:
            module.weight = embedding.weight
            module.quant_method.process_weights_after_loading(module)
