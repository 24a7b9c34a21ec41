# SPDX-License-Identifier: Apache-2.0
"""Devices set aside for a role: one placement-group bundle per node, several ranks inside a bundle."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from verl.utils.errors import UserError


class ResourcePool:
    """A named set of devices, the same number on each of some nodes.

    Example:
        >>> pool = ResourcePool("policy", num_nodes=1, devices_per_node=6, device="cuda")
        >>> pool.acquire(timeout_s=120)
    """

    def __init__(self, name: str, num_nodes: int, devices_per_node: int, device: str, section: str = "trainer") -> None:
        """Describe the pool; nothing is claimed yet.

        Args:
            name: Shown in messages.
            num_nodes: Nodes.
            devices_per_node: GPUs of each node, or ranks of one CPU each.
            device: `cuda` or `cpu`.
            section: Of the configuration, whose `nnodes` and `n_gpus_per_node` ask for it; shown in messages.
        """
        self.name = name
        self.section = section
        self.num_nodes = num_nodes
        self.devices_per_node = devices_per_node
        self.device = device
        self._group: Any = None

    @property
    def world_size(self) -> int:
        """Number of devices."""
        return self.num_nodes * self.devices_per_node

    def describe(self) -> str:
        """Say what is asked for, and by which keys."""
        kind, section = resource_name(self.device), self.section
        return (
            f"resource pool {self.name!r} needs {self.num_nodes} node(s) with {self.devices_per_node} {kind}(s) each "
            f"({section}.nnodes={self.num_nodes}, {section}.n_gpus_per_node={self.devices_per_node})"
        )

    def acquire(self, timeout_s: float) -> None:
        """Claim the devices.

        Args:
            timeout_s: Seconds to wait for Ray to find them.

        Raises:
            UserError: The cluster has not enough devices, or not enough free ones.
        """
        check_cluster([self])
        bundle = {"CPU": float(self.devices_per_node)}
        if self.device == "cuda":
            bundle["GPU"] = float(self.devices_per_node)
        strategy = "STRICT_SPREAD" if self.num_nodes > 1 else "PACK"
        # Ray refuses a name that exists, and pools of two runs may live in one namespace
        name = f"verl-{self.name}-{uuid.uuid4().hex[:8]}"
        self._group = placement_group([bundle] * self.num_nodes, strategy=strategy, name=name)
        if not self._group.wait(timeout_s):
            available = {key: value for key, value in ray.available_resources().items() if key in ("CPU", "GPU")}
            self.release()
            raise UserError(
                f"{self.describe()}; the Ray cluster has {available} free on {len(ray.nodes())} node(s) after "
                f"{timeout_s:.0f} s, the rest is in use. Ask for fewer devices, or wait until others are done"
            )

    def scheduling(self, node_index: int) -> PlacementGroupSchedulingStrategy:
        """Strategy that puts an actor on one of the pool's nodes.

        Args:
            node_index: 0 to `num_nodes` - 1.

        Returns:
            A value for `scheduling_strategy`.
        """
        assert self._group is not None, "acquire() was not called"
        return PlacementGroupSchedulingStrategy(
            placement_group=self._group,
            placement_group_bundle_index=node_index,
            placement_group_capture_child_tasks=True,
        )

    def release(self) -> None:
        """Give the devices back; actors in the pool die."""
        if self._group is not None:
            remove_placement_group(self._group)
            self._group = None


def resource_name(device: str) -> str:
    """Ray's name of what a device is.

    Args:
        device: `cuda` or `cpu`.
    """
    return "GPU" if device == "cuda" else "CPU"


def check_cluster(pools: Sequence[ResourcePool]) -> None:
    """Refuse pools that the cluster could not hold even if nobody else used it.

    Args:
        pools: Of one run, on the same kind of device.

    Raises:
        UserError: It could not. Nothing was claimed, and nothing waited for.
    """
    name = resource_name(pools[0].device)
    refuse_too_large(pools, [node["Resources"].get(name, 0.0) for node in ray.nodes() if node["Alive"]])


def refuse_too_large(pools: Sequence[ResourcePool], devices_of_nodes: Sequence[float]) -> None:
    """Compare pools with what the nodes have.

    Args:
        pools: Of one run, on the same kind of device.
        devices_of_nodes: Devices of each node, used or not.

    Raises:
        UserError: A pool finds too few nodes of its size, or all of them together need more than there is.
    """
    has = f"the Ray cluster has {sum(devices_of_nodes):g} on {len(devices_of_nodes)} node(s)"
    mend = "Ask for fewer devices, or start Ray on more nodes first"
    for pool in pools:
        if sum(devices >= pool.devices_per_node for devices in devices_of_nodes) < pool.num_nodes:
            raise UserError(f"{pool.describe()}; {has}. {mend}")
    needed = sum(pool.world_size for pool in pools)
    if needed > sum(devices_of_nodes):
        listed = "; ".join(pool.describe() for pool in pools)
        raise UserError(f"{listed}: {needed} in all; {has}. {mend}")
