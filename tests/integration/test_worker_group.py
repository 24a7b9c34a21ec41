# SPDX-License-Identifier: Apache-2.0
"""A worker group of two CPU ranks on a real Ray cluster: places, dispatch, and every way in which a rank can fail."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import ray
import torch

from verl.protocol import DataProto
from verl.single_controller import (
    DataShare,
    Dispatch,
    RayWorkerGroup,
    ResourcePool,
    Worker,
    WorkerPlace,
    WorkerSpec,
    register,
)
from verl.utils.errors import UserError

pytestmark = pytest.mark.ray


class Doubler(Worker):
    """A rank that computes, and fails on request."""

    def __init__(self, place: WorkerPlace, factor: int) -> None:
        super().__init__(place)
        self.factor = factor

    @register(Dispatch.ONE_TO_ALL)
    def where(self) -> tuple[WorkerPlace, dict[str, str | None]]:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "VERL_TEST_WORD")
        return self.place, {name: os.environ.get(name) for name in names}

    @register(Dispatch.DP_COMPUTE_PROTO)
    def scale(self, batch: DataProto, offset: int = 0) -> DataProto:
        uids = [f"{self.place.rank}:{uid}" for uid in batch.non_tensor_batch["uid"]]
        values = batch.batch["value"] * self.factor + offset
        return DataProto.from_dict(tensors={"scaled": values}, non_tensors={"seen": uids})

    @register(Dispatch.DP_COMPUTE_METRIC)
    def total(self, batch: DataProto) -> int:
        return int(batch.batch["value"].sum())

    @register(Dispatch.ONE_TO_ALL)
    def fail_on(self, rank: int, how: str, gate: str = "") -> None:
        """Rank `rank` raises or dies; the other sleeps until the file `gate` is there."""
        while self.place.rank != rank and not os.path.exists(gate):
            time.sleep(0.05)
        if self.place.rank != rank:
            return
        if how == "die":
            os._exit(3)
        raise KeyError(f"rank {rank} has had enough")

    def not_offered(self) -> None:
        """Has no mark."""


class Pair(Doubler):
    """Two ranks that work on the same rows, as those of one tensor- or sequence-parallel group do."""

    @register(Dispatch.ONE_TO_ALL)
    def data_shares(self) -> dict[str, DataShare]:
        return {"main": DataShare(0, 1), "own": DataShare(self.place.rank, 2)}

    @register(Dispatch.DP_COMPUTE_METRIC, role="own")
    def own_total(self, batch: DataProto) -> int:
        return int(batch.batch["value"].sum())


@contextmanager
def started_group(worker_class: type[Worker] = Doubler) -> Iterator[RayWorkerGroup]:
    pool = ResourcePool("test", num_nodes=1, devices_per_node=2, device="cpu")
    pool.acquire(timeout_s=60)
    spec = WorkerSpec(worker_class, {"factor": 2}, env_vars={"VERL_TEST_WORD": "yes"}, name="doubler")
    group = RayWorkerGroup(pool, spec, start_timeout_s=240)
    yield group
    group.shutdown()
    pool.release()


@pytest.fixture(scope="module")
def group(ray_cluster: str) -> Iterator[RayWorkerGroup]:
    with started_group() as group:
        yield group


def rows(num_rows: int) -> DataProto:
    return DataProto.from_dict(
        tensors={"value": torch.arange(num_rows)}, non_tensors={"uid": [str(row) for row in range(num_rows)]}
    )


def test_ranks_know_their_places_and_meet_at_rank_zero(group: RayWorkerGroup) -> None:
    places, environments = zip(*group.where(), strict=True)
    assert list(places) == [WorkerPlace(0, 2, 0, 0), WorkerPlace(1, 2, 1, 0)]
    assert [env["RANK"] for env in environments] == ["0", "1"]
    assert [env["LOCAL_RANK"] for env in environments] == ["0", "1"]
    assert {env["WORLD_SIZE"] for env in environments} == {"2"}
    assert {env["VERL_TEST_WORD"] for env in environments} == {"yes"}
    assert len({(env["MASTER_ADDR"], env["MASTER_PORT"]) for env in environments}) == 1
    assert environments[0]["MASTER_PORT"] is not None
    assert (group.world_size, len(group.actors)) == (2, 2)


def test_a_batch_is_cut_over_the_ranks_and_joined_in_order(group: RayWorkerGroup) -> None:
    result = group.scale(rows(6), offset=1)
    assert result.batch["scaled"].tolist() == [1, 3, 5, 7, 9, 11]
    assert result.non_tensor_batch["seen"].tolist() == ["0:0", "0:1", "0:2", "1:3", "1:4", "1:5"]
    assert group.total(rows(6)) == [0 + 1 + 2, 3 + 4 + 5]
    assert group.call("total", rows(2)) == [0, 1]
    assert group.dp_size == 2


def test_ranks_that_share_a_model_get_the_same_rows_and_one_answers(ray_cluster: str) -> None:
    with started_group(Pair) as group:
        assert (group.dp_size, group.world_size) == (1, 2)
        result = group.scale(rows(3))
        assert result.batch["scaled"].tolist() == [0, 2, 4]
        assert result.non_tensor_batch["seen"].tolist() == ["0:0", "0:1", "0:2"]
        assert group.total(rows(3)) == [3]
        assert group.own_total(rows(4)) == [0 + 1, 2 + 3]


def test_an_uneven_batch_is_refused_and_the_group_goes_on(group: RayWorkerGroup) -> None:
    with pytest.raises(ValueError, match="5 rows"):
        group.scale(rows(5))
    assert group.total(rows(2)) == [0, 1]


def test_methods_without_a_mark_are_not_offered(group: RayWorkerGroup) -> None:
    assert not hasattr(group, "not_offered")


def test_an_exception_of_one_rank_arrives_while_the_other_sleeps(group: RayWorkerGroup, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with pytest.raises(KeyError, match="rank 1 has had enough"):
        group.fail_on(1, how="raise", gate=str(gate))
    gate.touch()  # only now may rank 0 go on
    assert group.total(rows(2)) == [0, 1]


def test_a_dead_rank_is_named_while_the_other_sleeps(ray_cluster: str) -> None:
    with started_group() as group, pytest.raises(RuntimeError, match=r"doubler\.fail_on: rank 1 died"):
        group.fail_on(1, how="die")


def test_ranks_that_do_not_answer_in_time_are_counted(group: RayWorkerGroup) -> None:
    with pytest.raises(RuntimeError, match=r"doubler\.where: 2 rank\(s\) did not answer in 0\.0 s"):
        group.call("where", timeout_s=0.0)


def test_a_pool_larger_than_the_cluster_is_refused(ray_cluster: str) -> None:
    too_large = ResourcePool("huge", num_nodes=1, devices_per_node=1000, device="cpu")
    with pytest.raises(UserError, match=r"'huge' needs 1 node.*1000.*n_gpus_per_node"):
        too_large.acquire(timeout_s=1)
    too_large.release()  # nothing is held, nothing happens


def test_a_pool_over_more_nodes_than_there_are_is_refused(ray_cluster: str) -> None:
    spread = ResourcePool("wide", num_nodes=2, devices_per_node=1, device="cpu")
    with pytest.raises(UserError, match=r"'wide' needs 2 node.*on 1 node"):
        spread.acquire(timeout_s=1)


def test_released_devices_can_be_claimed_again(ray_cluster: str) -> None:
    # two thirds of what is free: a second claim fits only when the first was given back
    size = max(1, int(2 * ray.available_resources()["CPU"] / 3))
    for _ in range(2):
        pool = ResourcePool("most", num_nodes=1, devices_per_node=size, device="cpu")
        pool.acquire(timeout_s=60)
        pool.release()
