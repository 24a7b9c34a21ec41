# SPDX-License-Identifier: Apache-2.0
"""vLLM worker side of the `shared_memory` backend: maps a weight bundle and reloads the model from it.

Runs inside vLLM's engine process and knows nothing of the trainer.
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
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from verl.weight_sync.bundle import WeightManifest, read_bundle


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


class SharedMemoryWeightTransferEngine(WeightTransferEngine[SharedMemoryInitInfo, SharedMemoryUpdateInfo]):
    """Receives weights through a file in the node's shared memory."""

    init_info_cls = SharedMemoryInitInfo
    update_info_cls = SharedMemoryUpdateInfo

    def init_transfer_engine(self, init_info: SharedMemoryInitInfo) -> None:
        """Nothing to set up."""

    def start_weight_update(self) -> None:
        """Put the model's layers back into the state in which a checkpoint can be loaded."""
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Load one bundle. Overrides the base method, which synchronises an accelerator that a CPU build lacks."""
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: SharedMemoryUpdateInfo) -> None:
        """Map the bundle and load it; raises `WeightDigestError` when bytes differ from those sent."""
        manifest = WeightManifest(
            update_info.path,
            update_info.names,
            update_info.dtypes,
            update_info.shapes,
            update_info.offsets,
            update_info.digests,
        )
        self.model.load_weights(read_bundle(manifest))

    def finish_weight_update(self) -> None:
        """Let the layers post-process their new weights."""
        finalize_layerwise_reload(self.model, self.model_config)
        refresh_tied_heads(self.model)

    def shutdown(self) -> None:
        """Nothing is held between updates."""


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
