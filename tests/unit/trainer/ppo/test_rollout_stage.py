# SPDX-License-Identifier: Apache-2.0
"""Batches in the making, several at once, over servers that complete groups when told to and a verifier."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.helpers.rollouts import GatedServer, TruthVerifier, prompt_rows, rollout_runtime
from verl.config import ActorRolloutRefConfig, AlgorithmConfig, DataConfig, PPOTrainerConfig, RolloutConfig
from verl.config.actor import ActorConfig
from verl.config.reward import RewardModelConfig
from verl.rewards.loop import LoopSettings, RewardFailedError, RewardLoop
from verl.rewards.manager import ManagerSettings, get_reward_manager_cls
from verl.rewards.prm.types import ScoreRequest, StepLogits
from verl.trainer.ppo.rollout_stage import RolloutStage
from verl.trainer.ppo.rollout_stream import SubmitSettings
from verl.utils.async_loop import BackgroundLoop

CONFIG = PPOTrainerConfig(
    data=DataConfig(max_response_length=8),
    actor_rollout_ref=ActorRolloutRefConfig(rollout=RolloutConfig(n=2), actor=ActorConfig(ppo_mini_batch_size=4)),
)


@pytest.fixture
def loop() -> Iterator[BackgroundLoop]:
    loop = BackgroundLoop("test")
    yield loop
    loop.close()


def test_a_later_batch_may_be_complete_before_an_earlier_one(loop: BackgroundLoop) -> None:
    server = GatedServer(lambda request, index: str(request.prompt_token_ids[1] + index))
    server.closed = {"step1"}
    stage = RolloutStage(CONFIG, rollout_runtime([server], loop))
    first, second = stage.start(prompt_rows([1, 2]), 1), stage.start(prompt_rows([3, 4]), 2)
    batch, scoring = second.result()
    assert list(batch.non_tensor_batch["response_text"]) == ["3", "4", "4", "5"]
    scores = scoring.result(timeout=20)
    assert {key: one.verdict.is_correct for key, one in scores.by_response.items()} == {
        ("step2-0-3", 0): True,
        ("step2-0-3", 1): False,
        ("step2-1-4", 0): True,
        ("step2-1-4", 1): False,
    }
    assert not first.has_failed
    server.closed = set()
    batch, scoring = first.result()
    assert list(batch.non_tensor_batch["response_text"]) == ["1", "2", "2", "3"]
    assert len(scoring.result(timeout=20).by_response) == 4


def test_greedy_responses_are_scored_and_are_no_rows_in_each_of_two_batches(loop: BackgroundLoop) -> None:
    server = GatedServer(lambda request, index: "g" if request.sampling.temperature == 0 else str(index))
    config = replace(CONFIG, algorithm=AlgorithmConfig(adv_estimator="remax"))
    stage = RolloutStage(config, rollout_runtime([server], loop))
    pending = [stage.start(prompt_rows([7, 8]), step) for step in (1, 2)]
    for step, each in enumerate(pending, start=1):
        batch, scoring = each.result()
        assert list(batch.non_tensor_batch["response_text"]) == ["0", "1", "0", "1"]
        expected = {(f"step{step}-{place}-{7 + place}", index) for place in range(2) for index in range(3)}
        assert set(scoring.result(timeout=20).by_response) == expected


def test_held_scores_wait_for_the_end_of_their_own_batch(loop: BackgroundLoop) -> None:
    server = GatedServer()
    server.closed = {"step1-1", "step2-1"}
    runtime = rollout_runtime([server], loop)
    scored: list[str] = []
    verifier = runtime.reward_loop._verifier

    class Noting:
        """Notes whose responses are judged."""

        async def verify(self, item):  # type: ignore[no-untyped-def]
            scored.append(item.uid.split("-")[0])
            return await verifier.verify(item)

    runtime.reward_loop._verifier = Noting()
    stage = RolloutStage(replace(CONFIG, reward_model=RewardModelConfig(overlap_rollout=False)), runtime)
    first, second = stage.start(prompt_rows([1, 2]), 1), stage.start(prompt_rows([3, 4]), 2)
    time.sleep(0.1)
    assert not scored
    server.closed = {"step1-1"}
    second.result()[1].result(timeout=20)
    assert scored == ["step2"] * 4
    server.closed = set()
    first.result()[1].result(timeout=20)
    assert scored == ["step2"] * 4 + ["step1"] * 4


def test_rows_are_dealt_to_the_ranks_by_length(loop: BackgroundLoop) -> None:
    lengths = [7, 6, 2, 1]
    server = GatedServer(lambda request, index: "x" * lengths[request.prompt_token_ids[1]])
    stage = RolloutStage(CONFIG, rollout_runtime([server], loop, dp_size=2))
    batch, scoring = stage.start(prompt_rows([0, 1, 2, 3]), 1).result()
    scoring.result(timeout=20)
    per_rank = batch.batch["response_mask"].sum(dim=1).reshape(2, 4).sum(dim=1)
    assert per_rank.tolist() == [20, 20]  # as they came it would be 30 and 10


def test_a_score_that_is_missing_ends_the_batch_while_others_still_generate(loop: BackgroundLoop) -> None:
    async def fail(request: ScoreRequest) -> StepLogits:
        raise ConnectionError("gone")

    server = GatedServer()
    server.closed = {"step1-19"}  # it is not waited for
    runtime = rollout_runtime([server], loop, SubmitSettings(max_in_flight_groups=1))
    manager = get_reward_manager_cls("naive")(ManagerSettings())
    runtime.reward_loop = RewardLoop(TruthVerifier(), manager, fail, LoopSettings(on_error="stop"))
    pending = RolloutStage(CONFIG, runtime).start(prompt_rows(list(range(20))), 1)
    with pytest.raises(RewardFailedError, match="uid=step1-.*on_error=stop"):
        pending.result()
    assert pending.has_failed


def test_a_batch_that_is_given_up_is_neither_sampled_nor_scored_on(loop: BackgroundLoop) -> None:
    server = GatedServer()
    server.closed = {"step1-1"}
    stage = RolloutStage(CONFIG, rollout_runtime([server], loop))
    pending = stage.start(prompt_rows([1, 2]), 1)
    while [request.uid for request in server.requests][-1:] != ["step1-1-2"]:
        time.sleep(0.001)
    pending.cancel()
    while server.in_flight:
        time.sleep(0.001)
    assert pending.has_failed and server.cancelled == ["step1-1-2"]
