# SPDX-License-Identifier: Apache-2.0
"""Rollouts ahead of the training, over servers that complete groups when told to: order, bound, sync, resume, ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from tests.helpers.rollouts import GatedServer, prompt_rows, rollout_runtime
from verl.config import ActorRolloutRefConfig, DataConfig, PPOTrainerConfig, RolloutConfig
from verl.data.sampler import LoaderSettings, build_dataloader
from verl.protocol import DataProto
from verl.trainer.ppo.rollout_ahead import AheadSettings, RolloutAhead, staleness_metrics
from verl.trainer.ppo.rollout_stage import RolloutStage
from verl.trainer.ppo.rollout_stream import SubmitSettings
from verl.utils.async_loop import BackgroundLoop

CONFIG = PPOTrainerConfig(
    data=DataConfig(max_response_length=8), actor_rollout_ref=ActorRolloutRefConfig(rollout=RolloutConfig(n=2))
)
GROUPS = 3


class NumberedRows:
    """Endless batches of three prompts, numbered through; the state is the number of batches drawn."""

    def __init__(self) -> None:
        self.drawn = 0

    def __iter__(self) -> Iterator[dict[str, list[Any]]]:
        yield prompt_rows([GROUPS * self.drawn + place for place in range(GROUPS)])
        self.drawn += 1

    def state_dict(self) -> dict[str, int]:
        return {"drawn": self.drawn + 1}


class PromptDataset(Dataset[dict[str, Any]]):
    """Ten prompts."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {key: values[0] for key, values in prompt_rows([index]).items()}


@pytest.fixture
def loop() -> Iterator[BackgroundLoop]:
    loop = BackgroundLoop("test")
    yield loop
    loop.close()


def rollouts_over(
    server: GatedServer,
    loop: BackgroundLoop,
    settings: AheadSettings,
    loader: Any = None,
    submit: SubmitSettings | None = None,
) -> RolloutAhead:
    runtime = rollout_runtime([server], loop, submit)
    stage = RolloutStage(CONFIG, runtime)
    return RolloutAhead(stage, runtime.stream, loop, loader or NumberedRows(), settings)


def steps_begun(server: GatedServer) -> list[int]:
    """Training steps whose groups the server has, in the order in which it got them."""
    return [int(request.uid.split("-")[0].removeprefix("step")) for request in server.requests]


def sync(rollouts: RolloutAhead, server: GatedServer) -> None:
    rollouts.hold()
    server.policy_version += 1
    rollouts.resume()


def _has_requests(server: GatedServer, number: int) -> bool:
    return len(server.requests) >= number


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < deadline_s
        time.sleep(0.001)


def expected_course(bound: int, last: int) -> tuple[list[list[int]], list[int]]:
    """By hand: which steps have been begun once each step's batch is asked for, and how stale that batch is."""
    begun_at: dict[int, int] = {}
    begun, staleness = [], []
    for step in range(1, last + 1):
        for ahead in range(step, last + 1):
            if ahead <= step + bound:
                begun_at.setdefault(ahead, step)
        begun.append(sorted(begun_at))
        staleness.append(step - begun_at[step])
    return begun, staleness


@pytest.mark.parametrize("bound", [0, 1, 2, 3, 9])
def test_batches_are_begun_and_grow_old_as_counted_by_hand(bound: int, loop: BackgroundLoop) -> None:
    last = 6
    server = GatedServer(lambda request, index: str(request.prompt_token_ids[1]))
    rollouts = rollouts_over(server, loop, AheadSettings(bound, last))
    begun, staleness = expected_course(bound, last)
    for step in range(1, last + 1):
        batch, scoring, metrics = rollouts.take(step, server.policy_version)
        num_requests = GROUPS * len(begun[step - 1])
        wait_until(partial(_has_requests, server, num_requests))
        assert steps_begun(server) == [s for s in begun[step - 1] for _ in range(GROUPS)]
        assert metrics == {"staleness/mean": staleness[step - 1], "staleness/max": staleness[step - 1]}
        first = GROUPS * (step - 1)
        assert list(batch.non_tensor_batch["ground_truth"]) == [str(first + row // 2) for row in range(2 * GROUPS)]
        scores = scoring.result(timeout=20)
        assert {uid.split("-")[0] for uid, _ in scores.by_response} == {f"step{step}"}
        assert all(one.verdict.is_correct for one in scores.by_response.values())
        sync(rollouts, server)
    assert max(steps_begun(server)) == last


def test_a_sync_that_waits_gives_every_response_one_version(loop: BackgroundLoop) -> None:
    """One group at a time: those that the server does not have yet get the new weights, and are less old."""
    server = GatedServer()
    rollouts = rollouts_over(server, loop, AheadSettings(2, 9), submit=SubmitSettings(max_in_flight_groups=1))
    server.closed = {"step2-1"}
    rollouts.take(1, 0)
    wait_until(lambda: server.requests[-1].uid.startswith("step2-1"))
    server.closed |= {"step2-2"}
    released = []

    def release_later() -> None:
        released.append(server.policy_version)
        server.closed -= {"step2-1"}

    loop._loop.call_soon_threadsafe(loop._loop.call_later, 0.1, release_later)
    sync(rollouts, server)
    assert released == [0]  # the sync waited for it
    server.closed = set()
    batch, _, metrics = rollouts.take(2, server.policy_version)
    versions = batch.batch["policy_version"].reshape(GROUPS, 2).tolist()
    assert versions == [[0, 0], [0, 0], [1, 1]]
    assert metrics == {"staleness/mean": pytest.approx(2 / 3), "staleness/max": 1.0}


def test_a_sync_that_keeps_responses_does_not_wait_for_them(loop: BackgroundLoop) -> None:
    server = GatedServer()
    server.closed = {"step2"}
    rollouts = rollouts_over(server, loop, AheadSettings(1, 9, keeps_in_flight=True))
    rollouts.take(1, 0)
    wait_until(lambda: server.in_flight == GROUPS)
    sync(rollouts, server)
    assert server.in_flight == GROUPS
    server.closed = set()
    batch, _, metrics = rollouts.take(2, 1)
    assert set(batch.batch["policy_version"].tolist()) == {0} and metrics["staleness/max"] == 1.0


def test_while_it_is_held_no_group_is_handed_over(loop: BackgroundLoop) -> None:
    server = GatedServer()
    server.closed = {"step1-2", "step2"}
    rollouts = rollouts_over(
        server, loop, AheadSettings(1, 9, keeps_in_flight=True), submit=SubmitSettings(max_in_flight_groups=1)
    )
    server.closed = {"step2-0"}
    rollouts.take(1, 0)
    wait_until(lambda: server.requests[-1].uid.startswith("step2-0"))
    rollouts.hold()
    server.closed = set()
    wait_until(lambda: server.in_flight == 0)
    time.sleep(0.02)
    assert len(server.requests) == GROUPS + 1
    server.policy_version = 1
    rollouts.resume()
    batch, _, _ = rollouts.take(2, 1)
    assert batch.batch["policy_version"].reshape(GROUPS, 2).tolist() == [[0, 0], [1, 1], [1, 1]]


@pytest.mark.parametrize(("version", "said"), [(5, "response b .*version 2, .*version 5"), (3, "response a .*4, .*3")])
def test_a_response_out_of_bounds_is_not_trained_on(version: int, said: str) -> None:
    batch = DataProto.from_dict(
        tensors={"policy_version": torch.tensor([4, 2])}, non_tensors={"uid": np.array(["a", "b"], object)}
    )
    with pytest.raises(RuntimeError, match=f"{said}.*max_staleness=2"):
        staleness_metrics(batch, version, 2)
    assert staleness_metrics(batch, 4, 2) == {"staleness/mean": 1.0, "staleness/max": 2.0}


def test_a_sync_that_the_queue_was_not_told_of_is_found_out(loop: BackgroundLoop) -> None:
    rollouts = rollouts_over(GatedServer(), loop, AheadSettings(1, 9))
    rollouts.take(1, 0)
    with pytest.raises(RuntimeError, match="allows 0 to 1 versions"):
        rollouts.take(2, 2)


@pytest.mark.parametrize("bound", [0, 1, 2])
@pytest.mark.parametrize("stop_after", [1, 3, 4])  # three batches of three make an epoch of these ten rows
def test_a_resumed_run_trains_on_the_same_prompts_in_the_same_order(
    bound: int, stop_after: int, loop: BackgroundLoop
) -> None:
    last = 8

    def loader() -> Any:
        return build_dataloader(PromptDataset(), LoaderSettings(batch_size=3, seed=7))

    def trained(rollouts: RolloutAhead, steps: range) -> list[list[str]]:
        batches = []
        for step in steps:
            batch, scoring, _ = rollouts.take(step, 0)
            scoring.result(timeout=20)
            batches.append(list(batch.non_tensor_batch["ground_truth"]))
        return batches

    whole = trained(rollouts_over(GatedServer(), loop, AheadSettings(bound, last), loader()), range(1, last + 1))
    assert len({tuple(batch) for batch in whole}) > 4  # shuffled, so that a wrong place shows
    first = rollouts_over(GatedServer(), loop, AheadSettings(bound, last), loader())
    before = trained(first, range(1, stop_after + 1))
    state = first.data_state()
    trained(first, range(stop_after + 1, stop_after + 3))  # a state must not move with the loader it came from
    resumed = loader()
    resumed.load_state_dict(state)
    again = rollouts_over(GatedServer(), loop, AheadSettings(bound, last), resumed)
    assert before + trained(again, range(stop_after + 1, last + 1)) == whole


def test_a_failure_ahead_ends_the_run_at_the_next_opportunity_and_names_its_training_step(loop: BackgroundLoop) -> None:
    server = GatedServer(fails_on="step4-1-10")
    rollouts = rollouts_over(server, loop, AheadSettings(3, 9))
    rollouts.take(1, 0)
    failing = rollouts._under_way[-1].pending  # the batch of step 4
    assert failing.training_step == 4
    wait_until(lambda: failing.has_failed)
    for opportunity in (rollouts.hold, lambda: rollouts.take(2, 0)):
        with pytest.raises(RuntimeError, match="batch of training step 4: rollout failed: the server is gone"):
            opportunity()


def test_what_is_under_way_can_be_given_up(loop: BackgroundLoop) -> None:
    server = GatedServer()
    server.closed = {"step2", "step3"}
    rollouts = rollouts_over(server, loop, AheadSettings(2, 9))
    rollouts.take(1, 0)
    wait_until(lambda: server.in_flight == 2 * GROUPS)
    rollouts.cancel()
    wait_until(lambda: server.in_flight == 0)
    assert sorted(uid.split("-")[0] for uid in server.cancelled) == ["step2"] * GROUPS + ["step3"] * GROUPS
    rollouts.cancel()  # nothing is left


def test_batches_ahead_stand_behind_the_one_that_is_waited_for(loop: BackgroundLoop) -> None:
    server = GatedServer()
    rollouts = rollouts_over(server, loop, AheadSettings(3, 4), submit=SubmitSettings(max_in_flight_groups=2))
    for step in range(1, 5):
        rollouts.take(step, 0)
    assert server.most_in_flight == 2
    assert steps_begun(server) == [step for step in range(1, 5) for _ in range(GROUPS)]
