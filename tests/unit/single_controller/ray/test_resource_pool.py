# SPDX-License-Identifier: Apache-2.0
"""Pools that no cluster of such nodes could hold (claiming devices: tests/integration/test_worker_group.py)."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from verl.single_controller import ResourcePool
from verl.single_controller.ray.resource_pool import refuse_too_large
from verl.utils.errors import UserError

ROLLOUT = "actor_rollout_ref.rollout"


def pool(num_nodes: int, devices: int, section: str = "trainer") -> ResourcePool:
    return ResourcePool(section.rpartition(".")[2], num_nodes, devices, "cuda", section)


@pytest.mark.parametrize(
    ("pools", "nodes"),
    [
        ([pool(1, 6), pool(1, 2, "reward_model")], [8.0]),
        ([pool(2, 4), pool(1, 8, ROLLOUT)], [8.0, 8.0]),
        ([pool(1, 2)], [0.0, 2.0]),
    ],
)
def test_pools_that_fit(pools: Sequence[ResourcePool], nodes: Sequence[float]) -> None:
    refuse_too_large(pools, nodes)


@pytest.mark.parametrize(
    ("pools", "nodes", "said"),
    [
        (
            [pool(1, 8)],
            [4.0],
            "'trainer' needs 1 node(s) with 8 GPU(s) each (trainer.nnodes=1, trainer.n_gpus_per_node=8); "
            "the Ray cluster has 4 on 1 node(s)",
        ),
        ([pool(2, 4)], [8.0], "(trainer.nnodes=2, trainer.n_gpus_per_node=4); the Ray cluster has 8 on 1 node(s)"),
        ([pool(1, 8)], [4.0, 4.0], "has 8 on 2 node(s). Ask for fewer devices"),
        (
            [pool(1, 6), pool(1, 4, ROLLOUT)],
            [8.0],
            f"(trainer.nnodes=1, trainer.n_gpus_per_node=6); resource pool 'rollout' needs 1 node(s) with 4 GPU(s) "
            f"each ({ROLLOUT}.nnodes=1, {ROLLOUT}.n_gpus_per_node=4): 10 in all; the Ray cluster has 8",
        ),
    ],
)
def test_pools_that_cannot_fit(pools: Sequence[ResourcePool], nodes: Sequence[float], said: str) -> None:
    with pytest.raises(UserError) as caught:
        refuse_too_large(pools, nodes)
    assert said in str(caught.value)
