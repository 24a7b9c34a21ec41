# SPDX-License-Identifier: Apache-2.0
"""Entry point `vllm.general_plugins`: makes the `shared_memory` weight transfer engine known to every vLLM process."""

from __future__ import annotations

from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

BACKEND = "shared_memory"


def register() -> None:
    """Register the engine by name; vLLM may load plugins more than once in a process."""
    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(
            BACKEND, "verl.weight_sync.vllm_receiver", "SharedMemoryWeightTransferEngine"
        )
