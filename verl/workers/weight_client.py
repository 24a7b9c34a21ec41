# SPDX-License-Identifier: Apache-2.0
"""Weight sync control messages to rollout servers on Ray. Spoken from a trainer rank, not from the driver."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import GetTimeoutError


class RayWeightSyncClient:
    """Says each message to all given servers and waits for all of them.

    Example:
        >>> client = RayWeightSyncClient(servers, timeout_s=600)
        >>> client.start_update()
    """

    def __init__(self, servers: Sequence[Any], timeout_s: float) -> None:
        """Remember the servers.

        Args:
            servers: Actor handles of `RolloutServer`.
            timeout_s: Seconds each message may take.
        """
        self._servers = list(servers)
        self._timeout_s = timeout_s

    def init_transfer(self, init_info: dict[str, Any]) -> None:
        """See `WeightSyncClient.init_transfer`."""
        self._say("init_transfer", init_info)

    def start_update(self) -> None:
        """See `WeightSyncClient.start_update`."""
        self._say("start_update")

    def update(self, payload: dict[str, Any]) -> None:
        """See `WeightSyncClient.update`."""
        self._say("update", payload)

    def finish_update(self, version: int) -> None:
        """See `WeightSyncClient.finish_update`."""
        self._say("finish_update", version)

    def _say(self, method: str, *args: Any) -> None:
        references = [getattr(server, method).remote(*args) for server in self._servers]
        try:
            ray.get(references, timeout=self._timeout_s)
        except GetTimeoutError as error:
            raise RuntimeError(
                f"weight sync: {method} was not answered by {len(references)} rollout server(s) in {self._timeout_s} s"
            ) from error
