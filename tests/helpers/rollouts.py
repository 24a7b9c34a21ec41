# SPDX-License-Identifier: Apache-2.0
"""Rollout outputs made by hand, and rollout servers that answer from a script, without an engine and without Ray."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import numpy as np

from verl.rollout.base import Generation
from verl.rollout.to_batch import RolloutOutput
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
