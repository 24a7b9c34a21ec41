# SPDX-License-Identifier: Apache-2.0
"""Engines that take modelled times: a rollout server that decodes, a PRM replica that scores, phases of training ranks.

They look like what the controller talks to, and sleep on the event loop's clock; see `virtual_time`.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from verl.rewards.prm.types import ScoreRequest, StepLogits
from verl.rollout.base import Generation
from verl.rollout.to_batch import RolloutOutput
from verl.workers.rollout_server import GroupRequest


@dataclass(frozen=True)
class Times:
    """The model. The defaults are estimates for a 7B policy and a 7B PRM in bfloat16 on GPUs of 990 TFLOP/s at half of
    that rate, two GPUs to a rollout server; none of them is a measurement.

    Args:
        decode_base_s: A decoding step's time that does not depend on how many sequences run.
        decode_per_sequence_s: What each running sequence adds to it.
        max_running: Sequences that a server decodes at a time.
        forward_tokens_per_s: Log-probs, tokens per second and GPU.
        update_tokens_per_s: Forward and backward, tokens per second and GPU.
        prm_tokens_per_s: Scoring, tokens per second and GPU.
        prm_fixed_s: Added for every response scored.
        sync_s: Weight sync.
        fixed_s: Added to log-probs and update each: optimizer step, collectives, controller.
    """

    decode_base_s: float = 0.006
    decode_per_sequence_s: float = 0.00003
    max_running: int = 256
    forward_tokens_per_s: float = 32_000.0
    update_tokens_per_s: float = 10_800.0
    prm_tokens_per_s: float = 32_000.0
    prm_fixed_s: float = 0.0
    sync_s: float = 2.0
    fixed_s: float = 1.0


class SimulatedServer:
    """A rollout server handle. Every running sequence gets a token per decoding step; more of them make steps longer.

    Prompts take no time.
    """

    def __init__(self, times: Times, lengths: Iterator[int]) -> None:
        """Start idle.

        Args:
            times: The model.
            lengths: Tokens of the next response, and so on; may be shared by servers.
        """
        self._times, self._lengths = times, lengths
        self._running: list[tuple[float, int, asyncio.Future[None]]] = []
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._progress = 0.0
        self._arrived, self._is_awake = asyncio.Event(), asyncio.Event()
        self._is_awake.set()
        self._numbers = itertools.count()
        self._task: asyncio.Task[None] | None = None
        self.busy_s = 0.0

    @property
    def generate_group(self) -> SimulatedServer:
        """The remote method."""
        return self

    def options(self, num_returns: str) -> SimulatedServer:
        """Return the method with options."""
        assert num_returns == "streaming"
        return self

    def remote(self, request: GroupRequest) -> AsyncIterator[Awaitable[RolloutOutput]]:
        """Start a group."""
        return self._stream(request)

    def freeze(self) -> None:
        """Stop decoding, as while weights are loaded; sequences stay where they are."""
        self._is_awake.clear()
        self._arrived.set()  # what was decoded until now is counted

    def thaw(self) -> None:
        """Go on decoding. Real engines read what was said so far once more; here that takes no time."""
        self._is_awake.set()

    async def _stream(self, request: GroupRequest) -> AsyncIterator[Awaitable[RolloutOutput]]:
        tasks = [asyncio.ensure_future(self._generate(request, index)) for index in range(request.num_responses)]
        for finished in asyncio.as_completed(tasks):
            yield finished

    async def _generate(self, request: GroupRequest, index: int) -> RolloutOutput:
        num_tokens = min(next(self._lengths), request.sampling.max_new_tokens)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((num_tokens, done))
        self._arrived.set()
        if self._task is None or self._task.done():
            self._task = asyncio.ensure_future(self._decode())
        await done
        ids: Any = range(num_tokens)  # only their number is read
        generation = Generation(
            request_id=request.uid, token_ids=ids, log_probs=ids, finish_reason="stop", policy_version=0
        )
        return RolloutOutput(request.uid, index, generation, "", np.zeros(0, dtype=np.int64))

    async def _decode(self) -> None:
        """Run until nothing is left; woken before the next sequence ends when another one arrives."""
        loop = asyncio.get_running_loop()
        while self._running or self._waiting:
            await self._is_awake.wait()
            self._admit()
            step_s = self._times.decode_base_s + self._times.decode_per_sequence_s * len(self._running)
            self._arrived.clear()
            wait_s = max(0.0, self._running[0][0] - self._progress) * step_s
            started_s = loop.time()
            try:
                await asyncio.wait_for(self._arrived.wait(), wait_s)
                passed_s = loop.time() - started_s
            except TimeoutError:
                passed_s = wait_s
            self._progress += passed_s / step_s
            self.busy_s += passed_s
            while self._running and self._running[0][0] <= self._progress + 1e-6:
                heapq.heappop(self._running)[2].set_result(None)

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self._times.max_running:
            num_tokens, done = self._waiting.popleft()
            heapq.heappush(self._running, (self._progress + num_tokens, next(self._numbers), done))


class SimulatedPRM:
    """A PRM replica, a `ScoreSteps`: one response after the other at its token rate."""

    def __init__(self, times: Times) -> None:
        """Start idle.

        Args:
            times: The model.
        """
        self._times = times
        self._turn = asyncio.Lock()
        self.busy_s = 0.0

    async def __call__(self, request: ScoreRequest) -> StepLogits:
        """Score; see `ScoreSteps`."""
        async with self._turn:
            seconds = self._times.prm_fixed_s + request.work_tokens / self._times.prm_tokens_per_s
            await asyncio.sleep(seconds)
            self.busy_s += seconds
        return StepLogits(np.zeros((len(request.steps), 2), dtype=np.float32))


class SimulatedRanks:
    """Policy ranks: phases that take as long as their tokens need."""

    def __init__(self, num_gpus: int, times: Times) -> None:
        """Start idle.

        Args:
            num_gpus: Their GPUs.
            times: The model.
        """
        self.num_gpus, self._times = num_gpus, times
        self.busy_s = 0.0

    async def log_probs(self, tokens: int) -> None:
        """Compute log-probs."""
        await self._work(tokens / (self.num_gpus * self._times.forward_tokens_per_s) + self._times.fixed_s)

    async def update(self, tokens: int) -> None:
        """Train."""
        await self._work(tokens / (self.num_gpus * self._times.update_tokens_per_s) + self._times.fixed_s)

    async def sync(self) -> None:
        """Send weights."""
        await self._work(self._times.sync_s)

    async def _work(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        self.busy_s += seconds


def log_normal_lengths(mean: float, sigma: float, longest: int, seed: int = 0) -> Iterator[int]:
    """Draw response lengths without end.

    Args:
        mean: Of the distribution before it is cut, tokens.
        sigma: Standard deviation of the logarithm.
        longest: Limit, tokens.
        seed: Of the draws.
    """
    generator = np.random.default_rng(seed)
    location = np.log(mean) - sigma**2 / 2
    while True:
        for length in np.exp(generator.normal(location, sigma, 4096)):
            yield int(min(max(1, round(length)), longest))


def measured_lengths(lengths: Sequence[int], longest: int, seed: int = 0) -> Iterator[int]:
    """Draw from measured response lengths without end.

    Args:
        lengths: Measured ones, tokens.
        longest: Limit, tokens.
        seed: Of the draws.
    """
    generator = np.random.default_rng(seed)
    while True:
        for length in generator.choice(np.asarray(lengths), 4096):
            yield int(min(length, longest))
