# SPDX-License-Identifier: Apache-2.0
"""Several PRM replicas on Ray that look like one scorer.

    consumes   requests, from any number of callers
    produces   logits, from the replica with the least work in front of it
    waits for  all replicas to load, then for answers up to a time limit; a failed request goes to another replica
    gives up   when no replica is left

Expects a connection to Ray. Knows no batch, no file and no reward.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from verl.rewards.prm.dispatch import Dispatcher, DispatchSettings, spread_over
from verl.rewards.prm.spec import PRMSpec
from verl.rewards.prm.types import PRMInputError, ScoreRequest, StepLogits
from verl.utils.errors import UserError
from verl.workers.process_reward import ProcessRewardServer

logger = logging.getLogger(__name__)

_CLOSE_TIMEOUT_S = 60.0
_SPARE_CALLS = 8  # besides requests an actor must take `close`


@dataclass(frozen=True)
class PoolSettings:
    """How the replicas run.

    Args:
        backend: A key of `PRM_BACKENDS`.
        num_replicas: Ray actors.
        gpus_per_replica: GPUs of each; 0 on a CPU.
        start_timeout_s: Longest time to load, seconds.
        environment: Variables of the actor processes.
        dispatch: Limits on requests.
    """

    backend: str = "hf"
    num_replicas: int = 1
    gpus_per_replica: int = 0
    start_timeout_s: float = 1800.0
    environment: Mapping[str, str] = field(default_factory=dict)
    dispatch: DispatchSettings = field(default_factory=DispatchSettings)


class RemoteScorer:
    """A PRM server on Ray as a `ScoreSteps`."""

    def __init__(self, server: Any) -> None:
        """Take the server.

        Args:
            server: Handle of a `ProcessRewardServer`.
        """
        self._server = server

    async def __call__(self, request: ScoreRequest) -> StepLogits:
        """See `ScoreSteps`."""
        reference = self._server.score.remote(request)
        try:
            answer: StepLogits = await reference
        except asyncio.CancelledError:
            ray.cancel(reference)  # a request that took too long must not go on keeping the replica busy
            raise
        except RayTaskError as error:
            if isinstance(error.cause, PRMInputError):  # what is wrong with the request, without a remote traceback
                raise error.cause from error
            raise
        return answer


def is_replica_gone(error: BaseException) -> bool:
    """Tell whether a replica will never answer again: its actor died, or the engine inside (Ray keeps the type).

    Args:
        error: What the replica raised.
    """
    return isinstance(error, RayActorError) or any(kind.__name__ == "EngineDeadError" for kind in type(error).__mro__)


class PRMPool:
    """A `StepScorer` over `num_replicas` actors, each with the whole PRM.

    Example:
        >>> pool = PRMPool(PRMSpec(path="Gen-Verse/ReasonFlux-PRM-7B"), PoolSettings("vllm", 8, gpus_per_replica=1))
        >>> await pool.start()
        >>> (await pool(ScoreRequest("r0", "1+1?", ("It is 2.",)))).logits
    """

    def __init__(self, spec: PRMSpec, settings: PoolSettings | None = None) -> None:
        """Remember the settings; nothing is started yet.

        Args:
            spec: The PRM and how to run it.
            settings: How many replicas, and where.
        """
        self._spec = spec
        self._settings = settings or PoolSettings()
        self._servers: list[Any] = []
        self._dispatcher: Dispatcher | None = None

    @property
    def servers(self) -> tuple[Any, ...]:
        """Handles of the replicas, none before `start` and after `close`."""
        return tuple(self._servers)

    @property
    def counts(self) -> dict[str, int]:
        """See `Dispatcher.counts`; empty before `start`."""
        return self._dispatcher.counts if self._dispatcher else {}

    async def start(self) -> None:
        """Start the replicas and load the PRM in each.

        Raises:
            UserError: The PRM cannot be loaded, or the cluster has no room for the replicas.
        """
        settings = self._settings
        actor_class = ray.remote(ProcessRewardServer).options(
            num_cpus=0,
            num_gpus=settings.gpus_per_replica,
            runtime_env={"env_vars": dict(settings.environment)},
            max_concurrency=settings.dispatch.max_in_flight + _SPARE_CALLS,
        )
        self._servers = [actor_class.remote(settings.backend, self._spec) for _ in range(settings.num_replicas)]
        started = asyncio.gather(*(server.start.remote() for server in self._servers))
        try:
            await asyncio.wait_for(started, settings.start_timeout_s)
        except TimeoutError as error:
            raise UserError(
                f"{settings.num_replicas} PRM replicas with {settings.gpus_per_replica} GPUs each did not start within "
                f"{settings.start_timeout_s:.0f} s: the cluster may have no room for them. Start fewer replicas."
            ) from error
        except RayTaskError as error:
            if isinstance(error.cause, UserError):  # the remote traceback is of no use to the user
                raise error.cause from error
            raise
        dispatch = dataclasses.replace(settings.dispatch, is_dead=is_replica_gone)
        self._dispatcher = spread_over([RemoteScorer(server) for server in self._servers], dispatch)

    async def __call__(self, request: ScoreRequest) -> StepLogits:
        """See `ScoreSteps`."""
        assert self._dispatcher is not None, "start() was not awaited"
        return await self._dispatcher(request)

    async def close(self) -> None:
        """End the engines, then the actors whatever they answered."""
        servers, self._servers = self._servers, []
        closing = asyncio.gather(*(server.close.remote() for server in servers), return_exceptions=True)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(closing, _CLOSE_TIMEOUT_S)
        for server in servers:
            ray.kill(server)
