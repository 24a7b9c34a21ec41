# SPDX-License-Identifier: Apache-2.0
"""Which sender a policy rank uses, and which servers hang on it. Loads a backend's packages only where it is used."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import ray
import torch

from verl.config.rollout import RolloutConfig
from verl.single_controller import WorkerPlace
from verl.weight_sync.base import WeightSender
from verl.weight_sync.broadcast import BroadcastSender, BroadcastSettings, GroupDoor
from verl.weight_sync.shared_memory import SharedMemorySender
from verl.workers.weight_client import RayWeightSyncClient


def build_sender(
    backend: str, place: WorkerPlace, servers: Sequence[Sequence[Any]], rollout: RolloutConfig
) -> WeightSender:
    """Connect one policy rank to the rollout servers; collective over the ranks.

    Args:
        backend: `shared_memory` (every node's leader writes for the servers of its node), `ipc`, `nccl` or `gloo`
            (rank 0 speaks to all servers).
        place: Where this rank stands.
        servers: Server handles by node index of their pool.
        rollout: Time limit, bucket size, ranks of a server.

    Returns:
        The sender.

    Raises:
        WeightSyncFailedError: A server did not answer, or did not join the process group.
    """
    timeout_s = rollout.weight_sync_timeout_s
    if backend == "shared_memory":
        of_node = servers[place.node_index] if place.is_node_leader and place.node_index < len(servers) else []
        client = RayWeightSyncClient(of_node, timeout_s) if of_node else None
        return SharedMemorySender(client, place.is_node_leader)
    leads = place.rank == 0
    everyone = [server for node in servers for server in node]
    per_server = rollout.tensor_model_parallel_size
    client = RayWeightSyncClient(everyone, timeout_s, ranks_per_server=per_server) if leads and everyone else None
    bucket_bytes = rollout.weight_sync_bucket_mib << 20
    if backend == "ipc":
        sender: WeightSender = importlib.import_module("verl.weight_sync.vllm_ipc_sender").IPCSender(
            client, leads, bucket_bytes
        )
        return sender
    door = _door(backend, timeout_s) if client is not None else None
    return BroadcastSender(client, door, BroadcastSettings(bucket_bytes, timeout_s))


def _door(backend: str, timeout_s: float) -> GroupDoor:
    address = ray.util.get_node_ip_address()
    if backend == "gloo":
        gloo_door: GroupDoor = importlib.import_module("verl.weight_sync.gloo_group").GlooDoor(address, timeout_s)
        return gloo_door
    nccl_door: GroupDoor = importlib.import_module("verl.weight_sync.vllm_nccl_group").NCCLDoor(
        address, torch.cuda.current_device()
    )
    return nccl_door
