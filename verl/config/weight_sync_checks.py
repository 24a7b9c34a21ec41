# SPDX-License-Identifier: Apache-2.0
"""Checks of the weight sync's backend against engine and device, as far as the configuration names the device.

What pools have to say about it is in `rollout_checks`. Opens no file.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from verl.config.problems import Problem

if TYPE_CHECKING:
    from verl.config.root import PPOTrainerConfig

_ROLLOUT = "actor_rollout_ref.rollout"
_KEY = f"{_ROLLOUT}.weight_sync_backend"
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
    yield from device_problems(backend, config.trainer.device)


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
