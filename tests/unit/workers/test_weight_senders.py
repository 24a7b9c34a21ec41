# SPDX-License-Identifier: Apache-2.0
"""Which policy ranks speak to servers: none but a node's leader, or rank 0; all the others only take part."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.helpers.configs import build
from verl.single_controller import WorkerPlace
from verl.weight_sync.broadcast import BroadcastSender
from verl.weight_sync.shared_memory import SharedMemorySender
from verl.workers.weight_senders import build_sender

ROLLOUT = build().actor_rollout_ref.rollout
NOBODY = object()  # calling it as a server would fail


def place(rank: int, per_node: int = 2) -> WorkerPlace:
    return WorkerPlace(rank=rank, world_size=4, local_rank=rank % per_node, node_index=rank // per_node)


@pytest.mark.parametrize(
    ("backend", "rank", "servers", "kind"),
    [
        ("shared_memory", 1, [[NOBODY], [NOBODY]], SharedMemorySender),  # not its node's leader
        ("shared_memory", 2, [[NOBODY], []], SharedMemorySender),  # leads a node without servers
        ("shared_memory", 2, [[NOBODY]], SharedMemorySender),  # the servers' pool has fewer nodes
        ("gloo", 1, [[NOBODY], [NOBODY]], BroadcastSender),
        ("gloo", 2, [[NOBODY], [NOBODY]], BroadcastSender),  # leads a node, but is not rank 0
        ("nccl", 3, [[NOBODY], [NOBODY]], BroadcastSender),
    ],
)
def test_a_rank_without_servers_takes_part_and_sends_nothing(
    backend: str, rank: int, servers: list[list[Any]], kind: type
) -> None:
    sender = build_sender(backend, place(rank), servers, ROLLOUT)
    assert isinstance(sender, kind)
    seen: list[str] = []

    def gather():
        for name in ("a", "b"):
            seen.append(name)
            yield name, torch.ones(3)

    report = sender.send(gather(), 1, verify=True)
    assert seen == ["a", "b"]
    assert (report.num_bytes, report.digests_compared) == (0, False)
