# SPDX-License-Identifier: Apache-2.0
"""What test_pools.py runs in a process of its own: two Ray nodes that say they have four GPUs each, and the pools of a
run on them. Prints, as one JSON line, on which node each policy rank and each server is, and which GPUs it is shown.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import ray
from ray.cluster_utils import Cluster

from verl.config import ActorRolloutRefConfig, PPOTrainerConfig, RolloutConfig, TrainerConfig
from verl.single_controller import Dispatch, RayWorkerGroup, Worker, WorkerSpec, register
from verl.trainer.ppo.placement import ResourcePoolManager, Role, actor_environment, server_slots
from verl.trainer.serving import server_class


def where_am_i() -> tuple[str, str]:
    """Ray node and visible GPUs of this process."""
    return ray.get_runtime_context().get_node_id(), os.environ.get("CUDA_VISIBLE_DEVICES", "")


class Rank(Worker):
    """A policy rank."""

    @register(Dispatch.ONE_TO_ALL)
    def where(self) -> tuple[str, str]:
        """See `where_am_i`."""
        return where_am_i()


class Server:
    """A rollout server."""

    def where(self) -> tuple[str, str]:
        """See `where_am_i`."""
        return where_am_i()


def places() -> dict[str, Any]:
    """Claim the pools of a run on two nodes, two GPUs of each for the policy and two for servers of TP 2."""
    rollout = RolloutConfig(enable_resource_pool=True, nnodes=2, n_gpus_per_node=2, tensor_model_parallel_size=2)
    config = PPOTrainerConfig(
        trainer=TrainerConfig(nnodes=2, n_gpus_per_node=2), actor_rollout_ref=ActorRolloutRefConfig(rollout=rollout)
    )
    pools = ResourcePoolManager(config, "cuda")
    pools.acquire()
    spec = WorkerSpec(Rank, env_vars=actor_environment("cuda"))
    ranks = RayWorkerGroup(pools.pool_of(Role.ACTOR_ROLLOUT_REF), spec, 120.0)
    pool = pools.pool_of(Role.ROLLOUT_SERVER)
    slots = server_slots(pool, rollout.tensor_model_parallel_size)
    servers = [server_class(Server, pool, slot, "", len(slot.devices)).remote() for slot in slots]
    return {
        "policy": ranks.call("where", timeout_s=120),
        "rollout": ray.get([server.where.remote() for server in servers], timeout=120),
    }


def main() -> int:
    """Start the nodes, print the places, end the nodes."""
    cluster = Cluster()
    for _ in range(2):
        cluster.add_node(num_cpus=8, num_gpus=4, object_store_memory=100 << 20)
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        sys.stdout.write("REPORT " + json.dumps(places()) + "\n")
    finally:
        ray.shutdown()
        cluster.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
