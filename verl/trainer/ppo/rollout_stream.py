# SPDX-License-Identifier: Apache-2.0
"""Groups out to the rollout servers, responses back one by one. Knows no reward and no engine.

consumes   group requests (one prompt, G responses each)
produces   every response at the moment it is complete (`on_response`), and all of them in the order of the prompts
waits for  the rollout servers, up to `timeout_s`
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from verl.rollout.to_batch import RolloutOutput
from verl.workers.rollout_server import GroupRequest

OnResponse = Callable[[RolloutOutput], None]


class RolloutStream:
    """Spreads groups over rollout servers by the number of responses each still owes.

    Example:
        >>> stream = RolloutStream(servers, timeout_s=3600)
        >>> outputs = loop.run(stream.generate(requests, on_response=lambda output: None))
    """

    def __init__(
        self, servers: Sequence[Any], timeout_s: float, timeout_key: str = "actor_rollout_ref.rollout.timeout_s"
    ) -> None:
        """Remember the servers.

        Args:
            servers: Actor handles of `RolloutServer`.
            timeout_s: Longest time one rollout may take, seconds.
            timeout_key: Configuration key that says so, for the message.
        """
        self._servers = list(servers)
        self._owed = [0] * len(self._servers)
        self._timeout_s, self._timeout_key = timeout_s, timeout_key

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
        tasks = [asyncio.create_task(self._generate_group(request, take)) for request in requests]
        done, pending = await asyncio.wait(tasks, timeout=self._timeout_s, return_when=asyncio.FIRST_EXCEPTION)
        failed = next((task for task in done if task.exception() is not None), None)
        if failed is None and not pending:
            for output in held:
                on_response(output)
            return [task.result() for task in tasks]
        for task in pending:
            task.cancel()
        if failed is not None:
            raise RuntimeError(f"rollout failed: {failed.exception()}") from failed.exception()
        missing = [request.uid for request, task in zip(requests, tasks, strict=True) if task in pending]
        raise RuntimeError(
            f"rollout: {len(missing)} of {len(requests)} groups were not complete after {self._timeout_s} s "
            f"({self._timeout_key}), first of them {missing[:3]}"
        )

    async def _generate_group(self, request: GroupRequest, on_response: OnResponse) -> list[RolloutOutput]:
        server = min(range(len(self._servers)), key=self._owed.__getitem__)
        self._owed[server] += request.num_responses
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
        return sorted(outputs, key=lambda output: output.index)
