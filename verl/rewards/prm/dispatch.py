# SPDX-License-Identifier: Apache-2.0
"""One `ScoreSteps` out of several replicas of a PRM.

    consumes   requests, from any number of callers
    produces   logits, from the replica with the least work in front of it
    waits for  room at a replica (bounded), then for its answer, up to a time limit; a failure moves on to another one
    gives up   after `max_attempts`, at once on a request that can never be scored, or when no replica is left

Knows callables only: Ray, vLLM and actors are elsewhere.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from verl.rewards.prm.types import PRMInputError, ScoreRequest, ScoreSteps, StepLogits

logger = logging.getLogger(__name__)


class NoReplicaError(RuntimeError):
    """Every replica is dead."""


class ScoringFailedError(RuntimeError):
    """A request failed as often as it may."""


def never_dead(error: BaseException) -> bool:
    """Say that no error means the replica itself is gone.

    Args:
        error: What a replica raised.
    """
    del error
    return False


@dataclass(frozen=True)
class DispatchSettings:
    """Limits.

    Args:
        max_in_flight: Requests that one replica is given at a time.
        timeout_s: Longest wait for one answer, seconds.
        max_attempts: Tries per request, the first one included.
        max_failures_in_row: A replica that fails so often without an answer in between counts as dead.
        is_dead: Tells from an error that its replica is gone for good.
    """

    max_in_flight: int = 256
    timeout_s: float = 600.0
    max_attempts: int = 3
    max_failures_in_row: int = 8
    is_dead: Callable[[BaseException], bool] = never_dead

    def __post_init__(self) -> None:
        """Refuse limits under which nothing could ever be scored."""
        if self.max_in_flight < 1 or self.max_attempts < 1 or self.max_failures_in_row < 1 or not self.timeout_s > 0:
            raise ValueError(f"limits must be positive: {self}")


@dataclass
class _Replica:
    name: str
    score: ScoreSteps
    in_flight: int = 0
    queued_chars: int = 0
    failures_in_row: int = 0
    is_alive: bool = True


class Dispatcher:
    """Spreads requests over replicas; is itself a `ScoreSteps`.

    Example:
        >>> score_steps = Dispatcher({"prm-0": first, "prm-1": second}, DispatchSettings(timeout_s=60))
        >>> await score_steps(ScoreRequest("r0", "1+1?", ("It is 2.",)))
    """

    def __init__(self, replicas: dict[str, ScoreSteps], settings: DispatchSettings) -> None:
        """Take the replicas.

        Args:
            replicas: By name; at least one.
            settings: Limits.
        """
        if not replicas:
            raise ValueError("at least one replica is needed")
        self._replicas = [_Replica(name, score) for name, score in replicas.items()]
        self._settings = settings
        self._changed = asyncio.Condition()
        self._counts: Counter[str] = Counter()

    @property
    def counts(self) -> dict[str, int]:
        """What happened so far: requests scored, retries, time-outs, failures, replicas alive."""
        names = ("scored", "retries", "timeouts", "failures")
        return {name: self._counts[name] for name in names} | {"alive": sum(r.is_alive for r in self._replicas)}

    async def __call__(self, request: ScoreRequest) -> StepLogits:
        """Score a response, trying again elsewhere after a failure; an answer that took so is flagged "retried".

        Args:
            request: The response.

        Raises:
            PRMInputError: It can never be scored.
            NoReplicaError: Nobody is left to ask.
            ScoringFailedError: All attempts failed.
        """
        tried: set[str] = set()
        error: BaseException | None = None
        for attempt in range(self._settings.max_attempts):
            self._counts["retries"] += int(attempt > 0)
            replica = await self._reserve(request, tried)
            tried.add(replica.name)
            try:
                answer = await self._ask(replica, request)
            except PRMInputError:
                raise
            except Exception as err:  # noqa: BLE001 - whatever a replica raises, the next one may do better
                error = err
                continue
            finally:
                await self._release(replica, request)
            self._counts["scored"] += 1
            return replace(answer, flags=(*answer.flags, "retried")) if attempt else answer
        raise ScoringFailedError(
            f"{request.request_id}: no step scores after {self._settings.max_attempts} attempts; the last one: "
            f"{type(error).__name__}: {error}"
        ) from error

    async def _reserve(self, request: ScoreRequest, tried: set[str]) -> _Replica:
        """Wait for room and take it, at a replica not tried yet if one is alive."""
        async with self._changed:
            while True:
                alive = [replica for replica in self._replicas if replica.is_alive]
                if not alive:
                    raise NoReplicaError(f"none of the {len(self._replicas)} PRM replicas is alive")
                fresh = [replica for replica in alive if replica.name not in tried] or alive
                free = [replica for replica in fresh if replica.in_flight < self._settings.max_in_flight]
                if free:
                    chosen = min(free, key=lambda replica: replica.queued_chars)
                    chosen.in_flight += 1
                    chosen.queued_chars += request.num_chars
                    return chosen
                await self._changed.wait()

    async def _release(self, replica: _Replica, request: ScoreRequest) -> None:
        async with self._changed:
            replica.in_flight -= 1
            replica.queued_chars -= request.num_chars
            self._changed.notify_all()

    async def _ask(self, replica: _Replica, request: ScoreRequest) -> StepLogits:
        """Ask once; learn from the outcome whether the replica still works."""
        try:
            answer = await asyncio.wait_for(replica.score(request), self._settings.timeout_s)
            if len(answer.logits) != len(request.steps):
                raise ValueError(f"{len(answer.logits)} scores for {len(request.steps)} reasoning steps")
            if not np.isfinite(answer.logits).all():
                raise ValueError("NaN or infinite logits")
        except PRMInputError:
            raise
        except Exception as err:
            self._note_failure(replica, request, err)
            raise
        replica.failures_in_row = 0
        return answer

    def _note_failure(self, replica: _Replica, request: ScoreRequest, error: Exception) -> None:
        kind = "timeouts" if isinstance(error, TimeoutError) else "failures"
        self._counts[kind] += 1
        replica.failures_in_row += 1
        what = (
            f"no answer after {self._settings.timeout_s:g} s"
            if kind == "timeouts"
            else f"{type(error).__name__}: {error}"
        )
        logger.warning("PRM replica %s failed on %s: %s", replica.name, request.request_id, what)
        gone = self._settings.is_dead(error) or replica.failures_in_row >= self._settings.max_failures_in_row
        if gone and replica.is_alive:
            replica.is_alive = False
            logger.error("PRM replica %s is dead; %d left", replica.name, self.counts["alive"])


def spread_over(replicas: Sequence[ScoreSteps], settings: DispatchSettings) -> Dispatcher:
    """Make a dispatcher over replicas named by their number.

    Args:
        replicas: At least one.
        settings: Limits.
    """
    return Dispatcher({f"prm-{n}": replica for n, replica in enumerate(replicas)}, settings)
