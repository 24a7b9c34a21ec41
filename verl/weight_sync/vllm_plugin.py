# SPDX-License-Identifier: Apache-2.0
"""Entry point `vllm.general_plugins`: makes our weight transfer engines known to every vLLM process."""

from __future__ import annotations

from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

RECEIVERS = {
    "shared_memory": ("shared_memory", "verl.weight_sync.vllm_receiver", "SharedMemoryWeightTransferEngine"),
    "gloo": ("gloo", "verl.weight_sync.vllm_receiver", "GlooWeightTransferEngine"),
    "ipc": ("verl_ipc", "verl.weight_sync.vllm_gpu_receiver", "CheckedIPCWeightTransferEngine"),
    "nccl": ("verl_nccl", "verl.weight_sync.vllm_gpu_receiver", "CheckedNCCLWeightTransferEngine"),
}
"""By backend: the name under which vLLM knows its receiver, and where that is; `ipc` and `nccl` alone are vLLM's."""


def register() -> None:
    """Register the engines by name; vLLM may load plugins more than once in a process."""
    for name, module, class_name in RECEIVERS.values():
        if name not in WeightTransferEngineFactory._registry:
            WeightTransferEngineFactory.register_engine(name, module, class_name)


def receiver_name(backend: str) -> str:
    """Name the receiver of a backend for `WeightTransferConfig`.

    Args:
        backend: A key of `RECEIVERS`.
    """
    return RECEIVERS[backend][0]
