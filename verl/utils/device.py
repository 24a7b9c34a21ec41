# SPDX-License-Identifier: Apache-2.0
"""The one place that asks torch what it runs on; it knows nothing of models, ranks' roles or placement.

Every other file takes its `torch.device` from here, so that a run on gloo and CPU and a run on NCCL and CUDA go through
the same lines.
"""

from __future__ import annotations

import gc
import os
from datetime import timedelta

import torch
import torch.distributed as dist

from verl.utils.errors import UserError

DEVICE_NAMES = ("auto", "cuda", "cpu")


def resolve_device(name: str = "auto", local_rank: int = 0) -> torch.device:
    """Turn a device name of the configuration into this process's device, and make it the current one.

    Args:
        name: `auto` (CUDA where there is any), `cuda` or `cpu`.
        local_rank: Index among the GPUs that this process can see; reduced modulo their number, since a launcher may
            show each process one GPU or all of them.

    Returns:
        `cpu` or `cuda:<index>`.

    Raises:
        UserError: The name is unknown, or `cuda` was asked for where no GPU is visible.
    """
    if name not in DEVICE_NAMES:
        raise UserError.for_key("trainer.device", name, f"allowed are {', '.join(DEVICE_NAMES)}", "Choose one of them")
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError.for_key(
            "trainer.device", name, "needs a visible CUDA GPU", "Set trainer.device=cpu, or check CUDA_VISIBLE_DEVICES"
        )
    device = torch.device("cuda", local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def dist_backend(device: torch.device) -> str:
    """Name the torch.distributed backends for a device: gloo also beside NCCL, for tensors offloaded to the host."""
    return "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"


def ensure_process_group(device: torch.device, timeout_s: float = 1800.0) -> None:
    """Start the default process group unless there is one: from RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT if set.

    Without these variables a group of this process alone is made, so that one path serves one and many ranks.

    Args:
        device: This process's device.
        timeout_s: Seconds after which a collective that some rank never joined fails.
    """
    if dist.is_initialized():
        return
    timeout = timedelta(seconds=timeout_s)
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group(dist_backend(device), timeout=timeout)
        return
    dist.init_process_group(dist_backend(device), store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given; returns at once on the CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def release_memory(device: torch.device) -> None:
    """Give freed blocks back to the driver, so that another process on the same GPU can take them."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def memory_stats(device: torch.device) -> dict[str, float]:
    """Measure the device's memory.

    Args:
        device: This process's device.

    Returns:
        `memory_allocated_bytes`, `memory_reserved_bytes` and the peak of each since the start; empty on the CPU.
    """
    if device.type != "cuda":
        return {}
    return {
        "memory_allocated_bytes": float(torch.cuda.memory_allocated(device)),
        "memory_reserved_bytes": float(torch.cuda.memory_reserved(device)),
        "memory_allocated_peak_bytes": float(torch.cuda.max_memory_allocated(device)),
        "memory_reserved_peak_bytes": float(torch.cuda.max_memory_reserved(device)),
    }


def rng_state(device: torch.device) -> dict[str, torch.Tensor]:
    """Read the random state of the host and, on CUDA, of the device: byte tensors by name."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_rng_state(device: torch.device, state: dict[str, torch.Tensor]) -> None:
    """Put back what `rng_state` read.

    Args:
        device: This process's device.
        state: Byte tensors by name; a missing name is left as it is.
    """
    if "cpu" in state:
        torch.set_rng_state(state["cpu"].cpu())
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)
