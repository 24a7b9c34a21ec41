# SPDX-License-Identifier: Apache-2.0
"""Which devices each role gets, and the Ray cluster they come from.

    policy pool   trainer.nnodes x trainer.n_gpus_per_node              policy ranks (one per device)
    rollout pool  rollout.nnodes x rollout.n_gpus_per_node              rollout servers, when enable_resource_pool
    reward pool   reward_model.nnodes x reward_model.n_gpus_per_node    PRM replicas, when enable_resource_pool

Rollout servers and PRM replicas without a pool of their own are in the policy's.
On a machine without GPUs a device is one rank with one CPU.
"""

from __future__ import annotations

import inspect
import logging
import os
from contextlib import ExitStack
from dataclasses import dataclass
from enum import Enum
from typing import Any

import ray

from verl.config import PPOTrainerConfig
from verl.single_controller import ResourcePool, check_cluster
from verl.utils.errors import UserError

logger = logging.getLogger(__name__)

_POOL_TIMEOUT_S = 120.0


class Role(Enum):
    """Who works in a run."""

    ACTOR_ROLLOUT_REF = "actor_rollout_ref"
    ROLLOUT_SERVER = "rollout_server"
    PROCESS_REWARD = "process_reward"


@dataclass(frozen=True)
class ServerSlot:
    """Room for one engine with its tensor-parallel devices.

    Attributes:
        node_index: Node of the pool.
        devices: Local device indices on that node.
    """

    node_index: int
    devices: tuple[int, ...]


def shares_policy_gpus(config: PPOTrainerConfig, device: str) -> tuple[bool, bool]:
    """Say who runs on the policy's GPUs.

    Args:
        config: The run's configuration.
        device: `cuda` or `cpu`.

    Returns:
        Whether the PRM does, and whether the rollout servers do.
    """
    reward, rollout = config.reward_model, config.actor_rollout_ref.rollout
    on_gpu = device == "cuda"
    return on_gpu and reward.enable and not reward.enable_resource_pool, on_gpu and not rollout.enable_resource_pool


def servers_sleep(config: PPOTrainerConfig, device: str) -> bool:
    """Say whether rollout servers hand their memory back between rollouts: where the policy trains on their GPUs.

    Args:
        config: The run's configuration.
        device: `cuda` or `cpu`.
    """
    return config.actor_rollout_ref.rollout.free_cache_engine and shares_policy_gpus(config, device)[1]


def scorers_sleep(config: PPOTrainerConfig, device: str) -> bool:
    """Say whether PRM servers hand their memory back while the policy trains on their GPUs.

    Args:
        config: The run's configuration.
        device: `cuda` or `cpu`.

    Returns:
        False for asynchronous training too: responses are scored all the time.
    """
    is_asynchronous = config.trainer.max_staleness > 0
    return config.reward_model.free_cache_engine and shares_policy_gpus(config, device)[0] and not is_asynchronous


class ResourcePoolManager:
    """The pools of a run, by role.

    Example:
        >>> pools = ResourcePoolManager(config, device="cpu")
        >>> pools.acquire()
        >>> pools.pool_of(Role.PROCESS_REWARD).world_size
    """

    def __init__(self, config: PPOTrainerConfig, device: str) -> None:
        """Lay out the pools; nothing is claimed yet.

        Args:
            config: The run's configuration.
            device: `cuda` or `cpu`.
        """
        self.device = device
        policy = ResourcePool("policy", config.trainer.nnodes, config.trainer.n_gpus_per_node, device)
        self._pools = {Role.ACTOR_ROLLOUT_REF: policy, Role.ROLLOUT_SERVER: policy}
        rollout = config.actor_rollout_ref.rollout
        if rollout.enable_resource_pool:
            self._pools[Role.ROLLOUT_SERVER] = ResourcePool(
                "rollout", *config.rollout_pool, device, "actor_rollout_ref.rollout"
            )
        if config.reward_model.enable:
            self._pools[Role.PROCESS_REWARD] = policy
            if config.reward_model.enable_resource_pool:
                self._pools[Role.PROCESS_REWARD] = ResourcePool(
                    "reward_model",
                    config.reward_model.nnodes,
                    config.reward_model.n_gpus_per_node,
                    device,
                    "reward_model",
                )

    def acquire(self) -> None:
        """Claim all devices; raises `UserError` when the cluster is too small."""
        check_cluster(self._distinct())
        for pool in self._distinct():
            pool.acquire(_POOL_TIMEOUT_S)

    def pool_of(self, role: Role) -> ResourcePool:
        """Pool of a role.

        Args:
            role: The role.

        Returns:
            Its pool; roles that share devices share the pool.
        """
        return self._pools[role]

    def num_devices(self) -> int:
        """Devices of all pools together."""
        return sum(pool.world_size for pool in self._distinct())

    def release(self) -> None:
        """Give all devices back."""
        for pool in self._distinct():
            pool.release()

    def _distinct(self) -> list[ResourcePool]:
        return list({id(pool): pool for pool in self._pools.values()}.values())


def server_slots(pool: ResourcePool, tensor_parallel_size: int) -> list[ServerSlot]:
    """Cut a pool into engines.

    Args:
        pool: The devices.
        tensor_parallel_size: Devices of one engine; must divide `pool.devices_per_node`.

    Returns:
        One slot per engine, node by node. An engine never spans nodes.
    """
    return [
        ServerSlot(node, tuple(range(first, first + tensor_parallel_size)))
        for node in range(pool.num_nodes)
        for first in range(0, pool.devices_per_node, tensor_parallel_size)
    ]


def connect_ray(ray_init: dict[str, Any], num_devices: int, device: str, stack: ExitStack) -> None:
    """Join the cluster named by RAY_ADDRESS, or start a local one; a connection that is there already is used and kept.

    Args:
        ray_init: Further arguments of `ray.init`, from `ray_kwargs.ray_init`.
        num_devices: Devices of all pools; a local cluster without GPUs offers at least as many CPUs.
        device: `cuda` or `cpu`.
        stack: Gets the end of the connection, when it was made here.

    Raises:
        UserError: `ray.init` does not know one of the arguments.
    """
    known = inspect.signature(ray.init).parameters
    unknown = [name for name in ray_init if name not in known and not name.startswith("_")]
    if unknown:
        allowed, mend = "ray.init has no such argument", "See the documentation of ray.init"
        raise UserError.for_key("ray_kwargs.ray_init", unknown, allowed, mend)
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    defaults: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": True}
    if os.environ.get("RAY_ADDRESS"):
        defaults["address"] = os.environ["RAY_ADDRESS"]
    else:
        defaults["include_dashboard"] = False
        cores = os.cpu_count() or 1
        if device == "cpu":
            if num_devices > cores:
                logger.warning("%d ranks and replicas share %d CPU cores: expect it to be slow", num_devices, cores)
            defaults["num_cpus"] = max(cores, num_devices)
            defaults["object_store_memory"] = 512 << 20
    ray.init(**(defaults | ray_init))
    stack.callback(ray.shutdown)


def actor_environment(device: str) -> dict[str, str]:
    """Environment of every actor process.

    Args:
        device: `cuda` or `cpu`.

    Returns:
        Variables that must be set before torch or vLLM are imported.
    """
    environment = {
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),
    }
    if device == "cuda":
        # Ray hides all GPUs from an actor that asks for none; rollout servers share the policy ranks' GPUs
        environment["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    if device == "cpu":
        # two OpenMP threads beside another process on the same core were 35 times slower than one
        environment |= {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_HOST_IP": "127.0.0.1"}
    return environment
