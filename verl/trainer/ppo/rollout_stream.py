# SPDX-License-Identifier: Apache-2.0
"""Groups out to the rollout servers, responses back one by one. Knows no reward and no engine.

consumes   group requests (one prompt, G responses each), from several callers at once
produces   every response at the moment it is complete (`on_response`), and all of them in the order of the prompts
waits for  the rollout servers, up to `timeout_s`; for `resume` while it is paused
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from verl.rollout.to_batch import RolloutOutput
from verl.trainer.ppo.length_memory import LengthMemory
from verl.workers.rollout_server import GroupRequest

OnResponse = Callable[[RolloutOutput], None]


@dataclass(frozen=True)
class SubmitSettings:
    """When groups are handed to the servers.

    Args:
        longest_first: Start the groups whose responses are expected to be the longest before the others, so that no
            long one begins when the rest is done: as the data state, else as they were so far.
        max_in_flight_groups: Most groups that a server has at once; 0 = all that come to it.
    """

    longest_first: bool = False
    max_in_flight_groups: int = 0


class RolloutStream:
    """Spreads groups over rollout servers by the number of responses each still owes.

    Example:
        >>> stream = RolloutStream(servers, timeout_s=3600)
        >>> outputs = loop.run(stream.generate(requests, on_response=lambda output: None))
    """

    def __init__(
        self,
        servers: Sequence[Any],
        timeout_s: float,
        timeout_key: str = "actor_rollout_ref.rollout.timeout_s",
        submit: SubmitSettings = SubmitSettings(),
    ) -> None:
        """Remember the servers.

        Args:
            servers: Actor handles of `RolloutServer`.
            timeout_s: Longest time one rollout may take, seconds.
            timeout_key: Configuration key that says so, for the message.
            submit: When groups are handed over.
        """
        self._servers = list(servers)
        self._owed = [0] * len(self._servers)
        self._groups = [0] * len(self._servers)
        self._submit, self._lengths = submit, LengthMemory()
        self._timeout_s, self._timeout_key = timeout_s, timeout_key
        limit = submit.max_in_flight_groups
        # one for all callers, so that a batch ahead waits behind the groups of the one before it
        self._slots: AbstractAsyncContextManager[Any] = (
            asyncio.Semaphore(limit * len(self._servers)) if limit else nullcontext()
        )
        self._is_open, self._is_idle = asyncio.Event(), asyncio.Event()
        self._is_open.set()
        self._is_idle.set()

    async def pause(self, until_idle: bool) -> None:
        """Hand no further groups to the servers before `resume`; callers of `generate` wait, and notice nothing.

        Args:
            until_idle: Return when the groups that the servers have are complete (or given up by their caller).
        """
        self._is_open.clear()
        if until_idle:
            await self._is_idle.wait()

    async def resume(self) -> None:
        """Hand over groups again."""
        self._is_open.set()

    async def generate(
        self, requests: Sequence[GroupRequest], on_response: OnResponse, hold: bool = False
    ) -> list[list[RolloutOutput]]:
        """Sample all groups.

        Args:
            requests: The groups.
            on_response: Called on the event loop with each response when it is complete.
            hold: Call it only when all groups are complete, for a PRM that must not run beside the rollout.

        Returns:
            Responses per group, in the order of `requests` and of their place in the group.

        Raises:
            RuntimeError: Not all groups were complete in time; the message names some that were not.
        """
        held: list[RolloutOutput] = []
        take = held.append if hold else on_response
        started = {
            place: asyncio.create_task(self._generate_group(requests[place], take)) for place in self._order(requests)
        }
        tasks = [started[place] for place in range(len(requests))]
        try:
            done, pending = await asyncio.wait(tasks, timeout=self._timeout_s, return_when=asyncio.FIRST_EXCEPTION)
        finally:  # also when the caller is cancelled; one that is done takes no notice
            for task in tasks:
                task.cancel()
        failed = next((task for task in done if task.exception() is not None), None)
        if failed is None and not pending:
            for output in held:
                on_response(output)
            return [task.result() for task in tasks]
        if failed is not None:
            raise RuntimeError(f"rollout failed: {failed.exception()}") from failed.exception()
        missing = [request.uid for request, task in zip(requests, tasks, strict=True) if task in pending]
        raise RuntimeError(
            f"rollout: {len(missing)} of {len(requests)} groups were not complete after {self._timeout_s} s "
            f"({self._timeout_key}), first of them {missing[:3]}"
        )

    def _order(self, requests: Sequence[GroupRequest]) -> list[int]:
        """Places of the requests in the order in which they are handed over; equal ones keep theirs."""
        places = list(range(len(requests)))
        if not self._submit.longest_first:
            return places
        expected = [self._lengths.expected(each.prompt_token_ids, each.expected_tokens) for each in requests]
        return sorted(places, key=lambda place: -expected[place])

    async def _generate_group(self, request: GroupRequest, on_response: OnResponse) -> list[RolloutOutput]:
        async with self._slots:  # while one is free, so is a place on some server
            while not self._is_open.is_set():  # it may be paused again before this task gets its turn
                await self._is_open.wait()
            outputs = await self._generate_on(self._next_server(), request, on_response)
        if self._submit.longest_first:
            longest = max(len(output.generation.token_ids) for output in outputs)
            self._lengths.observe(request.prompt_token_ids, float(longest))
        return outputs

    def _next_server(self) -> int:
        """The server that owes the fewest responses among those that may take another group."""
        limit = self._submit.max_in_flight_groups
        free = [server for server, held in enumerate(self._groups) if not limit or held < limit]
        return min(free or range(len(self._servers)), key=self._owed.__getitem__)

    async def _generate_on(self, server: int, request: GroupRequest, on_response: OnResponse) -> list[RolloutOutput]:
        self._owed[server] += request.num_responses
        self._groups[server] += 1
        self._is_idle.clear()
        outputs: list[RolloutOutput] = []
        try:
            stream = self._servers[server].generate_group.options(num_returns="streaming").remote(request)
            async for reference in stream:
                output = await reference
                self._owed[server] -= 1
                outputs.append(output)
                on_response(output)
        finally:
            self._owed[server] -= request.num_responses - len(outputs)
            self._groups[server] -= 1
            if not any(self._groups):
                self._is_idle.set()
        return sorted(outputs, key=lambda output: output.index)
