# SPDX-License-Identifier: Apache-2.0
"""Who runs where, from the configuration alone. Starts nothing; the trainer's pools follow the same numbers."""

from __future__ import annotations

from dataclasses import dataclass

from verl.config.root import ActorRolloutRefConfig, PPOTrainerConfig


@dataclass(frozen=True)
class RolePlacement:
    """One role of a run.

    Example:
        `RolePlacement("PRM", 2, 1, "prm", "vllm pooling replicas")`: two replicas of one device each, pool `prm`.
    """

    role: str
    """Name of the role."""
    instances: int
    """Processes, servers or replicas."""
    devices_each: int
    """Devices per instance; 0 = CPU only."""
    pool: str
    """`policy`, `rollout`, `prm` or `cpu`."""
    note: str
    """Engine and what else matters."""


@dataclass(frozen=True)
class Placement:
    """All roles and pools of a run.

    Example:
        `place(config).prm_replicas`
    """

    policy_nodes: int
    """Nodes of the policy pool."""
    policy_devices_per_node: int
    """Devices of the policy pool on each node."""
    rollout_nodes: int
    """Nodes of the rollout servers' own pool; 0 = they have none."""
    rollout_devices_per_node: int
    """Devices of the rollout servers' own pool on each node; 0 = they have none."""
    prm_nodes: int
    """Nodes of the PRM's own pool; 0 = it has none."""
    prm_devices_per_node: int
    """Devices of the PRM's own pool on each node; 0 = it has none."""
    rollout_servers: int
    """Rollout servers."""
    prm_replicas: int
    """PRM replicas; 0 = no PRM."""
    roles: tuple[RolePlacement, ...]
    """Every role, for the plan."""

    @property
    def pools(self) -> tuple[tuple[str, int, int], ...]:
        """Every pool there is: name, nodes, devices of each."""
        pools = (
            ("policy", self.policy_nodes, self.policy_devices_per_node),
            ("rollout", self.rollout_nodes, self.rollout_devices_per_node),
            ("prm", self.prm_nodes, self.prm_devices_per_node),
        )
        return tuple(pool for pool in pools if pool[1])

    @property
    def num_devices(self) -> int:
        """Devices of all pools."""
        return sum(nodes * devices for _, nodes, devices in self.pools)


def place(config: PPOTrainerConfig) -> Placement:
    """Place every role of a run.

    Args:
        config: A checked root.

    Returns:
        The placement.
    """
    trainer, policy, prm = config.trainer, config.actor_rollout_ref, config.reward_model
    own_pool = prm.enable and prm.enable_resource_pool
    # Beside the policy one replica is enough: it shares those devices.
    replicas = prm.nnodes * (prm.n_gpus_per_node // prm.tensor_model_parallel_size) if own_pool else int(prm.enable)
    is_split, (rollout_nodes, rollout_devices) = policy.rollout.enable_resource_pool, config.rollout_pool
    tp = policy.rollout.tensor_model_parallel_size
    servers = policy.rollout.num_servers(rollout_nodes * rollout_devices)
    pool = "rollout" if is_split else "policy"
    roles = [
        RolePlacement("policy training", trainer.num_devices, 1, "policy", _training(policy)),
        RolePlacement("rollout", servers, tp, pool, f"{policy.rollout.name} servers, TP {tp}{_ahead(config)}"),
    ]
    if config.needs_reference:
        note = "the policy without its adapters" if policy.model.lora_rank else "in the policy's processes"
        roles.append(RolePlacement("reference", trainer.num_devices, 1, "policy", note))
    if prm.enable:
        pool = "prm" if own_pool else "policy"
        process = prm.process_reward
        note = f"{process.backend} replicas, TP {prm.tensor_model_parallel_size}, mode {process.mode}"
        roles.append(RolePlacement("PRM", replicas, prm.tensor_model_parallel_size, pool, note))
    note = f"worker processes, {prm.verifier_timeout_s:g} s per answer"
    roles.append(RolePlacement("rule verifier", prm.num_verifier_workers, 0, "cpu", note))
    return Placement(
        policy_nodes=trainer.nnodes,
        policy_devices_per_node=trainer.n_gpus_per_node,
        rollout_nodes=rollout_nodes if is_split else 0,
        rollout_devices_per_node=rollout_devices if is_split else 0,
        prm_nodes=prm.nnodes if own_pool else 0,
        prm_devices_per_node=prm.n_gpus_per_node if own_pool else 0,
        rollout_servers=servers,
        prm_replicas=replicas,
        roles=tuple(roles),
    )


def _training(policy: ActorRolloutRefConfig) -> str:
    """The engine and what else matters of it."""
    notes = [policy.actor.engine_name]
    if policy.actor.ulysses_sequence_parallel_size > 1:
        notes.append(f"{policy.actor.ulysses_sequence_parallel_size} ranks per sequence")
    if policy.model.lora_rank:
        notes.append(f"LoRA of rank {policy.model.lora_rank}")
    return ", ".join(notes)


def _ahead(config: PPOTrainerConfig) -> str:
    steps = config.trainer.max_staleness
    return f", up to {steps} step(s) ahead of the training" if steps else ""
