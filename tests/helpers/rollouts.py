# SPDX-License-Identifier: Apache-2.0
"""Rollout outputs made by hand, and rollout servers that answer from a script, without an engine and without Ray."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from verl.rewards.loop import LoopSettings, RewardLoop
from verl.rewards.manager import ManagerSettings, get_reward_manager_cls
from verl.rewards.types import RewardInput, RuleVerdict
from verl.rollout.base import Generation
from verl.rollout.to_batch import RolloutOutput
from verl.trainer.ppo.rollout_stream import RolloutStream, SubmitSettings
from verl.utils.async_loop import BackgroundLoop
from verl.workers.rollout_server import GroupRequest

Answer = Callable[[GroupRequest, int], str]


def rollout_output(uid: str, index: int, text: str, **changes: Any) -> RolloutOutput:
    """A response with one token per character and an EOS (id 1) behind them; `changes` replaces fields of it."""
    tokens = [ord(character) for character in text] + [1]
    generation = {
        "request_id": f"{uid}-{index}",
        "token_ids": tokens,
        "log_probs": [-0.5] * len(tokens),
        "finish_reason": "stop",
        "policy_version": 3,
    } | changes
    starts = np.minimum(np.arange(len(generation["token_ids"]), dtype=np.int64), len(text))
    return RolloutOutput(uid, index, Generation(**generation), text, starts)


class FakeServer:
    """Looks like an actor handle of `RolloutServer`: streams a group's responses in the order `order(request)`.

    Args:
        answer: Text of a response.
        order: Indices in order of completion.
        fail_after: Raise after so many responses of a group.
        hang_on: Never finish the group of this uid.
    """

    def __init__(
        self,
        answer: Answer = lambda request, index: "x",
        order: Callable[[GroupRequest], list[int]] = lambda request: list(range(request.num_responses)),
        fail_after: int | None = None,
        hang_on: str | None = None,
    ) -> None:
        self.requests: list[GroupRequest] = []
        self._answer, self._order = answer, order
        self._fail_after, self._hang_on = fail_after, hang_on

    @property
    def generate_group(self) -> FakeServer:
        """The remote method."""
        return self

    def options(self, num_returns: str) -> FakeServer:
        """As a Ray actor method has it; only streaming answers are offered."""
        assert num_returns == "streaming"
        return self

    def remote(self, request: GroupRequest) -> AsyncIterator[Awaitable[RolloutOutput]]:
        """Start a group."""
        self.requests.append(request)
        return self._stream(request)

    async def _stream(self, request: GroupRequest) -> AsyncIterator[Awaitable[RolloutOutput]]:
        for number, index in enumerate(self._order(request)):
            await asyncio.sleep(0)
            if request.uid == self._hang_on:
                await asyncio.Event().wait()
            if number == self._fail_after:
                raise ConnectionError("the server is gone")
            yield _value(rollout_output(request.uid, index, self._answer(request, index)))


async def _value(output: RolloutOutput) -> RolloutOutput:
    return output


class GatedServer(FakeServer):
    """Completes a group when its test says so, and marks responses with the version of its weights at their start.

    Args:
        answer: Text of a response.
        fails_on: Break off in the group of this uid.
    """

    def __init__(self, answer: Answer = lambda request, index: "x", fails_on: str | None = None) -> None:
        super().__init__(answer)
        self.policy_version = 0
        self.closed: set[str] = set()
        self._fails_on = fails_on
        self.cancelled: list[str] = []
        self.in_flight = 0
        self.most_in_flight = 0

    async def _stream(self, request: GroupRequest) -> AsyncIterator[Awaitable[RolloutOutput]]:
        version = self.policy_version
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            while any(request.uid.startswith(prefix) for prefix in self.closed):  # set by the test's own thread
                await asyncio.sleep(0.001)
            for index in self._order(request):
                await asyncio.sleep(0)
                if request.uid == self._fails_on:
                    raise ConnectionError("the server is gone")
                yield _value(rollout_output(request.uid, index, self._answer(request, index), policy_version=version))
        except asyncio.CancelledError:
            self.cancelled.append(request.uid)
            raise
        finally:
            self.in_flight -= 1


def prompt_rows(indices: list[int]) -> dict[str, list[Any]]:
    """Prompts as the data loader hands them out; prompt and ground truth are the row's number."""
    return {
        "prompt_token_ids": [[5, index] for index in indices],
        "raw_prompt": [[{"role": "user", "content": f"p{index}"}] for index in indices],
        "data_source": ["math"] * len(indices),
        "ground_truth": [str(index) for index in indices],
        "extra_info": [{} for _ in indices],
        "index": indices,
    }


class TruthVerifier:
    """A response is right if it is the ground truth."""

    async def verify(self, item: RewardInput) -> RuleVerdict:
        """See `Verifier.verify`."""
        return RuleVerdict(float(item.response == item.ground_truth), item.response == item.ground_truth)


def rollout_runtime(
    servers: list[Any], loop: BackgroundLoop, submit: SubmitSettings | None = None, dp_size: int = 1
) -> Any:
    """What a rollout stage reads of a `Runtime`: servers given, scored by rule alone."""
    manager = get_reward_manager_cls("naive")(ManagerSettings())
    return SimpleNamespace(
        actor=SimpleNamespace(dp_size=dp_size),
        servers=servers,
        stream=RolloutStream(servers, timeout_s=30.0, submit=submit or SubmitSettings()),
        reward_loop=RewardLoop(TruthVerifier(), manager, None, LoopSettings()),
        loop=loop,
        pad_token_id=0,
        wake_servers=lambda for_update=False: None,
        sleep_servers=lambda: None,
        wake_scorers=lambda: None,
        sleep_scorers=_nothing,
    )


async def _nothing() -> None:
    pass
