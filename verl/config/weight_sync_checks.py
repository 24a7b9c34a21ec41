# SPDX-License-Identifier: Apache-2.0
"""Checks of the weight sync's backend against engine, placement and device, as far as the configuration names that.

Opens no file.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from verl.config.problems import Problem

if TYPE_CHECKING:
    from verl.config.root import PPOTrainerConfig

_ROLLOUT = "actor_rollout_ref.rollout"
_KEY = f"{_ROLLOUT}.weight_sync_backend"
_POOL = f"{_ROLLOUT}.enable_resource_pool"
_VLLM_ONLY: tuple[str, ...] = ("ipc", "nccl", "gloo")
_DEVICES_OF = {"ipc": "cuda", "nccl": "cuda", "gloo": "cpu"}


def weight_sync_problems(config: PPOTrainerConfig) -> Iterator[Problem]:
    """Check the backend of the weight sync.

    Args:
        config: The root, every value of the right type.

    Yields:
        Every mistake found.
    """
    rollout = config.actor_rollout_ref.rollout
    backend = rollout.weight_sync_backend
    if backend in _VLLM_ONLY and rollout.name != "vllm":
        allowed = f"is for vllm servers; {rollout.name} servers take weights by shared_memory"
        yield Problem(_KEY, backend, allowed, "Set it to auto", (f"{_ROLLOUT}.name",))
    yield from _placement(config)
    yield from device_problems(backend, config.trainer.device)


def _placement(config: PPOTrainerConfig) -> Iterator[Problem]:
    rollout = config.actor_rollout_ref.rollout
    backend, is_split = rollout.weight_sync_backend, rollout.enable_resource_pool
    if backend == "ipc" and is_split:
        allowed = f"needs policy and rollout servers on the same GPUs, but {_POOL}=True"
        yield Problem(_KEY, backend, allowed, "Set it to auto", (_POOL,))
    if backend == "nccl" and not is_split:
        allowed = "joins policy and rollout servers on different GPUs, but they share theirs"
        yield Problem(_KEY, backend, allowed, f"Set it to auto, or {_POOL}=True", (_POOL,))
    only_way = rollout.name != "vllm"
    nodes = max(config.trainer.nnodes, rollout.nnodes)
    if is_split and nodes > 1 and (backend == "shared_memory" or (backend == "auto" and only_way)):
        allowed = f"reaches {rollout.name} servers on the policy's own node only, and the pools have {nodes} nodes"
        mend = f"Set {_POOL}=False, or {_ROLLOUT}.name=vllm" if only_way else "Set it to auto"
        yield Problem(_KEY, "shared_memory", allowed, mend, (_POOL, "trainer.nnodes", f"{_ROLLOUT}.nnodes"))


def device_problems(backend: str, device: str) -> Iterator[Problem]:
    """Check the backend against the device.

    Args:
        backend: The value of `weight_sync_backend`.
        device: `cuda`, `cpu`, or `auto` as long as it is not known; then nothing is said.

    Yields:
        The mistake, if it is one.
    """
    wanted = _DEVICES_OF.get(backend)
    if wanted is None or device in ("auto", wanted):
        return
    allowed = f"needs {wanted}, but the run is on {device}"
    yield Problem(_KEY, backend, allowed, "Set it to auto", ("trainer.device",))
