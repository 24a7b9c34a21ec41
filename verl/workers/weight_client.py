# SPDX-License-Identifier: Apache-2.0
"""Weight sync control messages to rollout servers on Ray. Spoken from a trainer rank, not from the driver.

A server that dies, fails or does not answer ends the sync at once with an error that names it: its weights and those of
the others may now be of different versions, so nothing is retried.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from verl.weight_sync.base import WeightSyncFailedError


class RayWeightSyncClient:
    """Says each message to all given servers and waits for all of them.

    Example:
        >>> client = RayWeightSyncClient(servers, timeout_s=600)
        >>> client.start_update()
    """

    def __init__(self, servers: Sequence[Any], timeout_s: float, calls: Any = ray, ranks_per_server: int = 1) -> None:
        """Remember the servers.

        Args:
            servers: Actor handles of `RolloutServer`.
            timeout_s: Seconds each message may take.
            calls: Has Ray's `wait` and `get`.
            ranks_per_server: Processes of one engine that take in weights (tensor parallel).
        """
        self._servers = list(servers)
        self._timeout_s = timeout_s
        self._calls = calls
        self._ranks_per_server = ranks_per_server

    @property
    def num_receivers(self) -> int:
        """See `GroupSyncClient.num_receivers`."""
        return len(self._servers) * self._ranks_per_server

    def init_transfer(self, init_info: dict[str, Any]) -> None:
        """See `WeightSyncClient.init_transfer`."""
        self._say("init_transfer", init_info)

    def init_group(self, init_info: dict[str, Any]) -> None:
        """See `GroupSyncClient.init_group`; the sender is rank 0, the servers follow in their order."""
        offsets = range(1, 1 + self.num_receivers, self._ranks_per_server)
        self._say_each("init_transfer", [(init_info | {"rank_offset": offset},) for offset in offsets])

    def start_update(self) -> None:
        """See `WeightSyncClient.start_update`."""
        self._say("start_update")

    def update(self, payload: dict[str, Any]) -> None:
        """See `WeightSyncClient.update`."""
        self._say("update", payload)

    def finish_update(self, version: int) -> None:
        """See `WeightSyncClient.finish_update`."""
        self._say("finish_update", version)

    def sync(self, payload: dict[str, Any], version: int) -> None:
        """See `WeightSyncClient.sync`."""
        self._say("sync", payload, version)

    def _say(self, method: str, *args: Any) -> None:
        self._say_each(method, [args] * len(self._servers))

    def _say_each(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> None:
        """Say it to all; the first server that fails ends the wait, the others may be waiting for that one."""
        references = [
            getattr(server, method).remote(*args) for server, args in zip(self._servers, arguments, strict=True)
        ]
        deadline = time.monotonic() + self._timeout_s
        pending = list(references)
        while pending:
            left_s = max(0.0, deadline - time.monotonic())
            done, pending = self._calls.wait(pending, num_returns=1, timeout=left_s)
            if not done:
                silent = ", ".join(str(references.index(reference)) for reference in pending)
                raise WeightSyncFailedError(
                    f"weight sync: rollout server(s) {silent} of {len(references)} (counted from 0) did not answer "
                    f"{method} in {self._timeout_s:g} s (actor_rollout_ref.rollout.weight_sync_timeout_s)"
                )
            self._take(done[0], f"rollout server {references.index(done[0])} of {len(references)}", method)

    def _take(self, reference: Any, server: str, method: str) -> None:
        try:
            self._calls.get(reference)
        except RayActorError as error:
            raise WeightSyncFailedError(f"weight sync: {server} (counted from 0) died during {method}") from error
        except RayTaskError as error:
            cause = getattr(error, "cause", None) or error
            raise WeightSyncFailedError(
                f"weight sync: {server} (counted from 0) failed in {method}: {type(cause).__name__}: {cause}"
            ) from error
