# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import socket

import pytest

from verl.single_controller.base.decorator import DataShare, Dispatch, dispatch_mode_of
from verl.single_controller.base.worker import Worker, WorkerPlace

NAMES = ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK")


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Put the variables back afterwards."""
    for name in (*NAMES, "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "before")
        monkeypatch.delenv(name)
    return monkeypatch


@pytest.mark.parametrize(("local_rank", "leads"), [(0, True), (1, False)])
def test_the_first_rank_of_each_node_leads_it(local_rank: int, leads: bool) -> None:
    assert WorkerPlace(rank=6 + local_rank, world_size=8, local_rank=local_rank, node_index=1).is_node_leader is leads


def test_rendezvous_is_what_torch_distributed_reads(environment: pytest.MonkeyPatch) -> None:
    Worker(WorkerPlace(rank=3, world_size=4, local_rank=1, node_index=1)).set_rendezvous("10.0.0.1", 1234)
    assert [os.environ[name] for name in NAMES] == ["10.0.0.1", "1234", "3", "4", "1"]


def test_a_rank_that_sees_one_gpu_only_calls_it_zero(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("CUDA_VISIBLE_DEVICES", "5")
    Worker(WorkerPlace(rank=3, world_size=4, local_rank=1, node_index=1)).set_rendezvous("10.0.0.1", 1234)
    assert os.environ["LOCAL_RANK"] == "0"


def test_the_free_port_can_be_listened_on_at_the_address() -> None:
    address, port = Worker(WorkerPlace(0, 1, 0, 0)).find_free_port()
    with socket.create_server((address, port)) as server, socket.create_connection((address, port), timeout=10):
        assert server.accept()[1][0] == address


def test_every_rank_has_a_part_of_the_batch_of_its_own() -> None:
    assert Worker(WorkerPlace(3, 4, 1, 1)).data_shares() == {"main": DataShare(3, 4)}


def test_all_methods_are_offered_to_the_controller() -> None:
    assert dispatch_mode_of(Worker.data_shares) is Dispatch.ONE_TO_ALL
    assert dispatch_mode_of(Worker.find_free_port) is Dispatch.ONE_TO_ALL
    assert dispatch_mode_of(Worker.set_rendezvous) is Dispatch.ONE_TO_ALL
