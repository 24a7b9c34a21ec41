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


def rollout_problems(config: PPOTrainerConfig) -> Iterator[Problem]:
    """Check pool and asynchrony of the rollout servers.

    Args:
        config: The root, every value of the right type.

    Yields:
        Every mistake found.
    """
    yield from _pool(config)
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
            allowed = f"describes the rollout servers' own pool, but {_POOL}=False"
            yield Problem(f"{_ROLLOUT}.{name}", found, allowed, f"Set {_POOL}=True, or leave it out", (_POOL,))


def _asynchrony(config: PPOTrainerConfig) -> Iterator[Problem]:
    rollout, steps = config.actor_rollout_ref.rollout, config.trainer.max_staleness
    if rollout.in_flight_update == "keep" and rollout.name not in ROLLOUTS_THAT_KEEP:
        allowed = f"{rollout.name} cannot freeze a response; {' and '.join(ROLLOUTS_THAT_KEEP)} can"
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
        allowed = "samples while the policy trains, but here rollout servers and policy take turns on the same GPUs"
        mend = f"Set {_POOL}=True and {_ROLLOUT}.n_gpus_per_node (without GPUs: trainer.device=cpu)"
        yield Problem(_STALENESS, steps, allowed, mend, (_POOL, "trainer.device"))
