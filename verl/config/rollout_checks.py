# SPDX-License-Identifier: Apache-2.0
"""Checks of where rollout servers stand and how far they may run ahead of the training. Knows no device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from verl.config.names import ROLLOUTS_THAT_KEEP
from verl.config.problems import Problem

if TYPE_CHECKING:
    from verl.config.root import PPOTrainerConfig

_ROLLOUT = "actor_rollout_ref.rollout"
_POOL = f"{_ROLLOUT}.enable_resource_pool"
_STALENESS = "trainer.max_staleness"
_CORRECTION = "algorithm.rollout_correction"
_SHARES_A_GPU: tuple[str, ...] = ("ipc",)
_NEEDS_A_GPU_EACH: tuple[str, ...] = ("nccl",)
_SHARES_A_MACHINE: tuple[str, ...] = ("shared_memory",)
_REACHED_EVERYWHERE: tuple[str, ...] = ("vllm",)
"""Engines that take weights over a process group too, and so from another node."""


def rollout_problems(config: PPOTrainerConfig) -> Iterator[Problem]:
    """Check pool, weight sync and asynchrony of the rollout servers.

    Args:
        config: The root, every value of the right type.

    Yields:
        Every mistake found.
    """
    yield from _pool(config)
    yield from _weight_sync(config)
    yield from _asynchrony(config)


def _pool(config: PPOTrainerConfig) -> Iterator[Problem]:
    rollout = config.actor_rollout_ref.rollout
    key = f"{_ROLLOUT}.n_gpus_per_node"
    if rollout.enable_resource_pool and rollout.n_gpus_per_node < 1:
        mend = "Set it to the servers' devices per node, e.g. 4 (and trainer.n_gpus_per_node to the rest)"
        yield Problem(key, rollout.n_gpus_per_node, "the rollout servers' pool needs devices", mend, (_POOL,))
    if rollout.enable_resource_pool:
        return
    for name, found, off in (("n_gpus_per_node", rollout.n_gpus_per_node, 0), ("nnodes", rollout.nnodes, 1)):
        if found != off:
            allowed = f"describes a pool of the rollout servers' own, but {_POOL}=False"
            yield Problem(f"{_ROLLOUT}.{name}", found, allowed, f"Set {_POOL}=True, or leave it out", (_POOL,))


def _weight_sync(config: PPOTrainerConfig) -> Iterator[Problem]:
    rollout = config.actor_rollout_ref.rollout
    key, backend = f"{_ROLLOUT}.weight_sync_backend", rollout.weight_sync_backend
    if rollout.enable_resource_pool and backend in _SHARES_A_GPU:
        allowed = f"needs policy and rollout servers on the same GPUs, but {_POOL}=True"
        yield Problem(key, backend, allowed, "Set it to auto", (_POOL,))
    if not rollout.enable_resource_pool and backend in _NEEDS_A_GPU_EACH:
        allowed = "joins policy and rollout servers on different GPUs, but they share theirs"
        yield Problem(key, backend, allowed, f"Set it to auto, or {_POOL}=True", (_POOL,))
    nodes = max(config.trainer.nnodes, rollout.nnodes)
    only_way = rollout.name not in _REACHED_EVERYWHERE
    is_shared_memory = backend in _SHARES_A_MACHINE or (backend == "auto" and only_way)
    if rollout.enable_resource_pool and is_shared_memory and nodes > 1:
        allowed = f"reaches {rollout.name} servers on the policy's own node only, and the pools have {nodes} nodes"
        mend = f"Set {_POOL}=False, or {_ROLLOUT}.name=vllm" if only_way else "Set it to auto"
        yield Problem(key, "shared_memory", allowed, mend, (_POOL, "trainer.nnodes", f"{_ROLLOUT}.nnodes"))


def _asynchrony(config: PPOTrainerConfig) -> Iterator[Problem]:
    rollout, steps = config.actor_rollout_ref.rollout, config.trainer.max_staleness
    if rollout.in_flight_update == "keep" and rollout.name not in ROLLOUTS_THAT_KEEP:
        allowed = f"{rollout.name} cannot freeze a response; that can: {', '.join(ROLLOUTS_THAT_KEEP)}"
        key = f"{_ROLLOUT}.in_flight_update"
        yield Problem(key, "keep", allowed, "Set it to wait", (f"{_ROLLOUT}.name",))
    if not steps:
        return
    if not config.algorithm.rollout_correction.weighs_cut_samples:
        allowed = "trains on responses of an earlier policy, which needs an importance correction"
        mend = f"Set {_CORRECTION}.rollout_is=token (or sequence, or {_CORRECTION}.bypass_old_log_probs=True)"
        yield Problem(_STALENESS, steps, allowed, mend, (f"{_CORRECTION}.rollout_is",))
    is_apart = rollout.enable_resource_pool or rollout.joins_servers
    if config.trainer.device != "cpu" and not is_apart:
        allowed = "samples while the policy trains, but on GPUs rollout servers and policy share theirs by turns"
        mend = f"Set {_POOL}=True and {_ROLLOUT}.n_gpus_per_node (without GPUs: trainer.device=cpu)"
        yield Problem(_STALENESS, steps, allowed, mend, (_POOL, "trainer.device"))
