# SPDX-License-Identifier: Apache-2.0
"""One `ScoreSteps` out of several replicas of a PRM.

    consumes   requests, from any number of callers
    produces   logits, from the replica with the fewest tokens in front of it
    waits for  room at a replica (bounded, first come first served), then for its answer, up to a time limit; a
               failure moves on to another one
    gives up   after `max_attempts`, at once on a request that can never be scored, or when no replica is left

Knows callables only: Ray, vLLM and actors are elsewhere.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Collection, Sequence
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
    queued_tokens: int = 0
    failures_in_row: int = 0
    is_alive: bool = True

    def take(self, request: ScoreRequest) -> None:
        self.in_flight += 1
        self.queued_tokens += request.work_tokens

    def give_back(self, request: ScoreRequest) -> None:
        self.in_flight -= 1
        self.queued_tokens -= request.work_tokens


@dataclass(frozen=True, eq=False)
class _Waiting:
    """A request without room: whoever makes some resolves `place` with a replica already taken for it."""

    request: ScoreRequest
    tried: frozenset[str]
    place: asyncio.Future[_Replica]


class Dispatcher:
    """Spreads requests over replicas; is itself a `ScoreSteps`. Lives on one event loop, so it needs no locks.

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
        self._waiting: dict[_Waiting, None] = {}
        self._counts: Counter[str] = Counter()

    @property
    def queued_tokens(self) -> dict[str, int]:
        """Work in front of each replica, by its name: tokens given to it and not answered yet."""
        return {replica.name: replica.queued_tokens for replica in self._replicas}

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
                replica.give_back(request)
                self._serve_waiting()
            self._counts["scored"] += 1
            return replace(answer, flags=(*answer.flags, "retried")) if attempt else answer
        raise ScoringFailedError(
            f"{request.request_id}: no step scores after {self._settings.max_attempts} attempts; the last one: "
            f"{type(error).__name__}: {error}"
        ) from error

    async def _reserve(self, request: ScoreRequest, tried: set[str]) -> _Replica:
        """Take room at a replica not tried yet if one is alive; wait for it where there is none."""
        replica = self._find_room(tried)
        if replica is not None:
            replica.take(request)
            return replica
        waiting = _Waiting(request, frozenset(tried), asyncio.get_running_loop().create_future())
        self._waiting[waiting] = None
        try:
            return await waiting.place
        except asyncio.CancelledError:
            if not waiting.place.cancelled() and waiting.place.exception() is None:
                waiting.place.result().give_back(request)  # cancelled between being served and hearing of it
                self._serve_waiting()
            raise
        finally:
            self._waiting.pop(waiting, None)

    def _find_room(self, tried: Collection[str]) -> _Replica | None:
        """Choose the replica with the least work among those with room; those tried already only if no other lives."""
        alive = [replica for replica in self._replicas if replica.is_alive]
        if not alive:
            raise NoReplicaError(f"none of the {len(self._replicas)} PRM replicas is alive")
        fresh = [replica for replica in alive if replica.name not in tried] or alive
        free = [replica for replica in fresh if self._has_room(replica)]
        return min(free, key=lambda replica: (replica.queued_tokens, replica.in_flight), default=None)

    def _serve_waiting(self) -> None:
        """Give room to those who wait for it, in the order in which they came.

        Looks no further than there is room: it is called after every answer, and thousands may be waiting.
        """
        for waiting in self._waiting:  # who is served takes himself out later, when his task has its turn
            if waiting.place.done():
                continue
            try:
                replica = self._find_room(waiting.tried)
            except NoReplicaError as error:
                waiting.place.set_exception(error)
                continue
            if replica is not None:
                replica.take(waiting.request)
                waiting.place.set_result(replica)
            elif not any(map(self._has_room, self._replicas)):
                return  # else it waits for a replica it has not tried, and those behind it may still be served

    def _has_room(self, replica: _Replica) -> bool:
        return replica.is_alive and replica.in_flight < self._settings.max_in_flight

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
