# SPDX-License-Identifier: Apache-2.0
"""A run's runtime whose engines and scorers answer at once, in this process: what is left is the controller's own work.

The parts look like the Ray handles that the trainer holds. Batches that go to the policy ranks are pickled, copied and
unpickled, as Ray does with them.
"""

from __future__ import annotations

import pickle
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from benchmarks.policy_material import draw_lengths
from verl.config import PPOTrainerConfig
from verl.protocol import DataProto
from verl.rewards.loop import LoopSettings, RewardLoop
from verl.rewards.manager import ManagerSettings, get_reward_manager_cls
from verl.rewards.prm.dispatch import DispatchSettings, spread_over
from verl.rewards.prm.types import ScoreRequest, StepLogits
from verl.rewards.types import RewardInput, RuleVerdict
from verl.rollout.base import Generation
from verl.rollout.to_batch import RolloutOutput
from verl.single_controller import DataShare, Dispatch
from verl.single_controller.base.decorator import join_results, split_arguments
from verl.trainer.ppo.rollout_stream import RolloutStream
from verl.utils.async_loop import BackgroundLoop
from verl.weight_sync.base import SyncReport
from verl.workers.rollout_server import GroupRequest

_STEP = "We add 12 and 30.\n\n"
_TIMEOUT_S = 3600.0
_NUM_KINDS = 64


class InstantServer:
    """A rollout server handle: streams a group's responses without computing anything."""

    def __init__(self, longest: int) -> None:
        """Write the responses that will be handed out, over and over.

        Args:
            longest: Tokens of the longest response.
        """
        self._kinds = [_response(length) for length in draw_lengths("tail", _NUM_KINDS, longest)]
        self._given = 0
        self.policy_version = 0

    @property
    def generate_group(self) -> InstantServer:
        """The remote method."""
        return self

    def options(self, num_returns: str) -> InstantServer:
        """Return the method with options."""
        assert num_returns == "streaming"
        return self

    def remote(self, request: GroupRequest) -> AsyncIterator[Awaitable[RolloutOutput]]:
        """Start a group."""
        return self._stream(request)

    async def _stream(self, request: GroupRequest) -> AsyncIterator[Awaitable[RolloutOutput]]:
        for index in range(request.num_responses):
            generation, text, starts = self._kinds[self._given % _NUM_KINDS]
            self._given += 1
            generation = replace(generation, policy_version=self.policy_version)
            yield _value(RolloutOutput(request.uid, index, generation, text, starts))


class InstantActor:
    """A policy worker group: splits, ships and joins batches as the real one; its ranks answer with zeros."""

    def __init__(self, dp_size: int, servers: Sequence[InstantServer]) -> None:
        """Take the size.

        Args:
            dp_size: Data-parallel ranks.
            servers: Get the policy's version with its weights.
        """
        self.dp_size, self._servers = dp_size, servers
        self._shares = [DataShare(rank, dp_size) for rank in range(dp_size)]

    def compute_log_prob(self, batch: DataProto) -> DataProto:
        """See `ActorRolloutRefWorker.compute_log_prob`."""
        parts = [shipped(_zeros(part, "old_log_probs", "entropys")) for part in self._ship(batch)]
        return self._join(parts)

    def compute_ref_log_prob(self, batch: DataProto) -> DataProto:
        """See `ActorRolloutRefWorker.compute_ref_log_prob`."""
        return self._join([shipped(_zeros(part, "ref_log_prob")) for part in self._ship(batch)])

    def update_actor(self, batch: DataProto, training_step: int) -> list[dict[str, float]]:
        """See `ActorRolloutRefWorker.update_actor`."""
        return [
            {"actor/loss": 0.0, "actor/optimizer_steps": 1.0, "actor/skipped_steps": 0.0} for _ in self._ship(batch)
        ]

    def sync_weights(self, version: int, verify: bool) -> list[SyncReport]:
        """See `ActorRolloutRefWorker.sync_weights`."""
        for server in self._servers:
            server.policy_version = version
        return [SyncReport(version, 1, 1, 1.0, 0.0, verify)] * self.dp_size

    def _ship(self, batch: DataProto) -> list[DataProto]:
        return [shipped(args[0]) for args, _ in split_arguments(self._shares, (batch,), {})]

    def _join(self, parts: Sequence[DataProto]) -> DataProto:
        joined: DataProto = join_results(Dispatch.DP_COMPUTE_PROTO, self._shares, parts)
        return joined


class InstantVerifier:
    """A rule verifier that finds every second response right."""

    def __init__(self) -> None:
        """Begin with a wrong one."""
        self._asked = 0

    async def verify(self, reward_input: RewardInput) -> RuleVerdict:
        """See `Verifier.verify`."""
        self._asked += 1
        is_correct = self._asked % 2 == 0
        return RuleVerdict(float(is_correct), is_correct)


async def instant_scorer(request: ScoreRequest) -> StepLogits:
    """Score every reasoning step alike; see `ScoreSteps`."""
    return StepLogits(np.zeros((len(request.steps), 2), dtype=np.float32))


def instant_runtime(config: PPOTrainerConfig, loop: BackgroundLoop) -> Any:
    """Put the parts together.

    Args:
        config: The run's configuration; gives response length, ranks, and how many PRM replicas there are.
        loop: Event loop of stream and scorers.

    Returns:
        What the trainer reads of a `Runtime`.
    """
    trainer, reward = config.trainer, config.reward_model
    servers = [InstantServer(config.data.max_response_length) for _ in range(trainer.num_devices)]
    replicas = [instant_scorer] * (reward.nnodes * reward.n_gpus_per_node)
    manager = get_reward_manager_cls(reward.reward_manager)(ManagerSettings())
    dispatcher = spread_over(replicas, DispatchSettings()) if reward.enable else None
    reward_loop = RewardLoop(InstantVerifier(), manager, dispatcher, LoopSettings())
    return SimpleNamespace(
        actor=InstantActor(trainer.num_devices, servers),
        servers=servers,
        prm_servers=replicas if reward.enable else [],
        stream=RolloutStream(servers, timeout_s=_TIMEOUT_S),
        reward_loop=reward_loop,
        loop=loop,
        total_training_steps=1,
        pad_token_id=0,
        num_devices=trainer.num_devices,
        sleep_servers=lambda: None,
        wake_servers=lambda for_update=False: None,
        sleep_scorers=_nothing,
        wake_scorers=lambda: None,
    )


async def _nothing() -> None:
    pass


class RepeatedRows:
    """A data loader whose every batch is the same."""

    def __init__(self, rows: dict[str, list[Any]]) -> None:
        """Take the batch.

        Args:
            rows: Of `prompt_rows`.
        """
        self._rows = rows

    def __iter__(self) -> Iterator[dict[str, list[Any]]]:
        """Hand out an epoch of one batch."""
        yield self._rows

    def state_dict(self) -> dict[str, Any]:
        """See `StatefulDataLoader.state_dict`."""
        return {}


def shipped(batch: DataProto) -> DataProto:
    """Send a batch to another process and back: pickled, its buffers copied once, unpickled.

    Args:
        batch: Any batch.
    """
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(batch, protocol=5, buffer_callback=buffers.append)
    arrived: DataProto = pickle.loads(head, buffers=[bytes(buffer) for buffer in buffers])
    return arrived


def prompt_rows(count: int, tokens: int) -> dict[str, list[Any]]:
    """Make prompts as the data loader hands them out.

    Args:
        count: Rows.
        tokens: Of each prompt.
    """
    return {
        "prompt_token_ids": [[7] * tokens for _ in range(count)],
        "raw_prompt": [[{"role": "user", "content": "What is 12 + 30?"}] for _ in range(count)],
        "data_source": ["math_dapo"] * count,
        "ground_truth": ["42"] * count,
        "extra_info": [{} for _ in range(count)],
        "index": list(range(count)),
    }


def _response(num_tokens: int) -> tuple[Generation, str, np.ndarray]:
    """A response of three to four characters a token, in short steps."""
    text = (_STEP * (num_tokens * 3 // len(_STEP) + 1)).rstrip()
    generation = Generation(
        request_id="instant",
        token_ids=[5] * num_tokens,
        log_probs=[-0.5] * num_tokens,
        finish_reason="stop",
        policy_version=0,
    )
    starts = np.minimum(np.arange(num_tokens, dtype=np.int64) * 3, len(text) - 1)
    return generation, text, starts


def _zeros(batch: DataProto, *columns: str) -> DataProto:
    return DataProto.from_dict(tensors={name: torch.zeros(batch.batch["responses"].shape) for name in columns})


async def _value(output: RolloutOutput) -> RolloutOutput:
    return output
