# SPDX-License-Identifier: Apache-2.0
"""Whole fits of the trainer over scripted servers, ranks and verifier: running ahead, validating, resuming."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

from tests.helpers.configs import build
from tests.helpers.rollouts import GatedServer, prompt_rows, rollout_runtime
from verl.data.sampler import LoaderSettings, build_dataloader
from verl.protocol import DataProto
from verl.trainer.ppo.ray_trainer import RayPPOTrainer
from verl.utils.async_loop import BackgroundLoop
from verl.weight_sync.base import SyncReport, WeightSyncFailedError

PROMPTS, GROUP, STEPS = 2, 2, 5


class PromptDataset(Dataset[dict[str, Any]]):
    """Seven prompts: three batches to an epoch, and one prompt left over."""

    def __len__(self) -> int:
        return 7

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {key: values[0] for key, values in prompt_rows([index]).items()}


class ScriptedRanks:
    """A policy worker group: its log-probs are the sampler's; it notes which prompts it was trained on.

    Args:
        servers: Get the policy's version with its weights.
        before_update: Called with the number of the update.
    """

    dp_size = 1

    def __init__(self, servers: list[GatedServer], before_update: Callable[[int], None]) -> None:
        self._servers, self._before_update = servers, before_update
        self.trained: list[list[str]] = []
        self.steps: list[int] = []
        self.events: list[str] = []

    def compute_log_prob(self, batch: DataProto) -> DataProto:
        log_probs = batch.batch["rollout_log_probs"]
        return DataProto.from_dict(tensors={"old_log_probs": log_probs, "entropys": torch.zeros_like(log_probs)})

    def update_actor(self, batch: DataProto, training_step: int) -> list[dict[str, float]]:
        self.events.append("update")
        self._before_update(len(self.trained) + 1)
        self.steps.append(training_step)
        self.trained.append(sorted(set(batch.non_tensor_batch["ground_truth"])))
        return [{"actor/optimizer_steps": 1.0, "actor/skipped_steps": 0.0}]

    def sync_weights(self, version: int, verify: bool) -> list[SyncReport]:
        self.events.append(f"sync {version}")
        for server in self._servers:
            server.policy_version = version
        return [SyncReport(version, 1, 1, 1.0, 0.0, verify)]

    def save_checkpoint(self, folder: str) -> None:
        (Path(folder) / "actor").mkdir()

    def load_checkpoint(self, folder: str) -> None:
        assert (Path(folder) / "actor").is_dir()


class Run:
    """A trainer over scripted parts, and what came of it."""

    def __init__(
        self,
        loop: BackgroundLoop,
        folder: Path,
        bound: int,
        *overrides: str,
        before_update: Callable[[int], None] = lambda number: None,
    ) -> None:
        self.config = build(
            f"data.train_batch_size={PROMPTS}",
            f"actor_rollout_ref.actor.ppo_mini_batch_size={PROMPTS}",
            f"actor_rollout_ref.rollout.n={GROUP}",
            "algorithm.rollout_correction.rollout_is=token",
            "trainer.device=cpu",
            "trainer.n_gpus_per_node=1",
            "trainer.export_hf=False",
            "trainer.val_before_train=False",
            f"trainer.output_dir={folder}",
            f"trainer.rollout_data_dir={folder}/rollouts",
            f"trainer.max_staleness={bound}",
            *overrides,
        )
        self.server = GatedServer(lambda request, index: "?" if index else str(request.prompt_token_ids[1]))
        self.ranks = ScriptedRanks([self.server], before_update)
        runtime = rollout_runtime([self.server], loop)
        runtime.actor, runtime.num_devices, runtime.total_training_steps = self.ranks, 1, STEPS
        self.metrics: dict[int, Mapping[str, float]] = {}
        tracker: Any = SimpleNamespace(write=self.metrics.__setitem__)
        loader = build_dataloader(PromptDataset(), LoaderSettings(batch_size=PROMPTS, seed=3))
        val = [prompt_rows([0, 1, 2])] if self.config.trainer.test_freq > 0 else None
        self.trainer = RayPPOTrainer(self.config, runtime, loader, val, tracker)

    def begun(self) -> list[int]:
        """Training steps whose groups the server has got, in that order."""
        names = [request.uid.split("-")[0] for request in self.server.requests]
        return [int(name.removeprefix("step")) for name in dict.fromkeys(names) if name.startswith("step")]


@pytest.fixture
def loop() -> Iterator[BackgroundLoop]:
    loop = BackgroundLoop("test")
    yield loop
    loop.close()


@pytest.mark.parametrize("bound", [0, 1, 2, 4])
def test_a_run_trains_on_every_batch_in_order_and_as_stale_as_the_bound_says(
    bound: int, loop: BackgroundLoop, tmp_path: Path
) -> None:
    on_policy, ahead = Run(loop, tmp_path / "on", 0), Run(loop, tmp_path / "ahead", bound)
    on_policy.trainer.fit()
    ahead.trainer.fit()
    assert ahead.ranks.trained == on_policy.ranks.trained and len(ahead.ranks.trained) == STEPS
    assert ahead.begun() == list(range(1, STEPS + 1))
    for step, metrics in ahead.metrics.items():
        assert metrics["staleness/max"] == metrics["staleness/mean"] == min(bound, step - 1)
        assert 0.0 <= metrics["rollout/exposed/share"] <= 1.0
        assert metrics["reward/accuracy/mean"] == 0.5  # each row has its own group's scores
    assert list(ahead.metrics) == list(range(1, STEPS + 1))
    row = (tmp_path / "ahead" / "rollouts" / f"{STEPS}.jsonl").read_text().splitlines()[0]
    assert f'"policy_version": {STEPS - min(bound, STEPS - 1)},' in row


def test_servers_take_memory_for_weights_before_a_sync_and_the_rest_after_it(
    loop: BackgroundLoop, tmp_path: Path
) -> None:
    run = Run(loop, tmp_path, 0)
    runtime, events = run.trainer.runtime, run.ranks.events
    runtime.sleep_servers = lambda: events.append("sleep")
    runtime.wake_servers = lambda for_update=False: events.append("wake for update" if for_update else "wake")
    runtime.wake_scorers = lambda: events.append("wake PRM")

    async def sleep_scorers() -> None:
        events.append("PRM sleeps")

    runtime.sleep_scorers = sleep_scorers
    run.trainer.fit()

    def sync(version: int) -> list[str]:
        return ["wake for update", f"sync {version}", "wake"]

    def step(number: int) -> list[str]:
        return ["wake", "wake PRM", "sleep", "PRM sleeps", "update", *sync(number + 1)]

    steps = [event for number in range(1, STEPS + 1) for event in step(number)]
    assert events == ["sleep", "PRM sleeps", *sync(1), *steps]


@pytest.mark.parametrize("bound", [0, 1, 3])
@pytest.mark.parametrize("broken_off_in", [2, 4])
def test_a_run_that_broke_off_goes_on_with_the_next_prompts(
    bound: int, broken_off_in: int, loop: BackgroundLoop, tmp_path: Path
) -> None:
    """Ctrl-C in an update, when batches ahead are drawn, and some of their responses are still on the servers."""

    def interrupt(number: int) -> None:
        if number == broken_off_in:
            raise KeyboardInterrupt

    whole = Run(loop, tmp_path / "whole", bound)
    whole.trainer.fit()
    keep = "actor_rollout_ref.rollout.in_flight_update=keep"  # so that a batch ahead may be on its way for long
    first = Run(loop, tmp_path / "run", bound, "trainer.save_freq=1", keep, before_update=interrupt)
    first.server.closed = {f"step{STEPS}"}
    with pytest.raises(KeyboardInterrupt):
        first.trainer.fit()
    while first.server.in_flight:
        loop.run(_a_moment())
    second = Run(loop, tmp_path / "run", bound, "trainer.save_freq=1")
    second.trainer.fit()
    assert first.ranks.trained + second.ranks.trained == whole.ranks.trained
    assert first.ranks.steps + second.ranks.steps == list(range(1, STEPS + 1))
    assert list(second.metrics) == list(range(broken_off_in, STEPS + 1))
    assert second.begun() == list(range(broken_off_in, STEPS + 1))


async def _a_moment() -> None:
    return None


def test_after_a_weight_sync_that_failed_no_group_is_handed_over(loop: BackgroundLoop, tmp_path: Path) -> None:
    run = Run(loop, tmp_path, 1, "actor_rollout_ref.rollout.in_flight_update=keep")
    run.server.closed = {"step2"}
    begun: list[list[int]] = []

    def fail_after_the_first(version: int, verify: bool) -> list[SyncReport]:
        if version == 2:
            begun.append(run.begun())
            raise WeightSyncFailedError("weight sync: rollout server 0 of 1 died")
        return ScriptedRanks.sync_weights(run.ranks, version, verify)

    run.ranks.sync_weights = fail_after_the_first  # type: ignore[method-assign]
    with pytest.raises(WeightSyncFailedError, match="server 0 of 1 died. There is no checkpoint"):
        run.trainer.fit()
    while run.server.in_flight:
        loop.run(_a_moment())
    assert begun == [[1, 2]] and run.begun() == [1, 2]
    assert len(run.server.cancelled) == PROMPTS


@pytest.mark.parametrize("in_flight_update", ["wait", "keep"])
def test_validation_runs_beside_the_batches_ahead_with_the_present_weights(
    in_flight_update: str, loop: BackgroundLoop, tmp_path: Path
) -> None:
    asked: list[tuple[str, int]] = []
    key = f"actor_rollout_ref.rollout.in_flight_update={in_flight_update}"
    run = Run(loop, tmp_path, 2, "trainer.test_freq=1", key)
    if in_flight_update == "keep":
        run.server.closed = {"step3"}  # begun in step 1, and it ends when the first validation is done

    def answer(request: Any, index: int) -> str:
        if request.uid.startswith("val"):
            asked.append((request.uid.split(".")[0], run.server.policy_version))
            if len(asked) == 3:
                run.server.closed = set()
        return str(request.prompt_token_ids[1])

    run.server._answer = answer
    last = run.trainer.fit()
    assert last["val/acc/mean@1"] == 1.0
    assert run.metrics[STEPS]["timing_s/testing"] == last["timing_s/testing"] > 0
    # the sync before the first step made version 1; there is one greedy answer to each of three prompts
    assert asked == [(f"val{step}", step + 1) for step in range(1, STEPS + 1) for _ in range(3)]
    assert [metrics["staleness/max"] for metrics in run.metrics.values()] == [0, 1, 2, 2, 2]
