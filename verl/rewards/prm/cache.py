# SPDX-License-Identifier: Apache-2.0
"""A `ScoreSteps` that remembers: the same problem with the same reasoning steps goes through the PRM once.

    consumes   requests, from any number of callers
    produces   the scorer's answers; those that cost no scoring are flagged "cached"
    waits for  the scorer, or for somebody's identical request that is on its way already

Valid as long as the PRM's weights and settings are, which is a whole run: make one cache per loaded PRM. Knows
callables only.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter, OrderedDict
from dataclasses import dataclass, replace

import numpy as np

from verl.rewards.prm.types import ScoreRequest, ScoreSteps, StepLogits


def score_key(request: ScoreRequest) -> bytes:
    """Digest everything in a request that its scores depend on: the problem, and the steps as they are cut.

    Args:
        request: The request; its name and token count change no score and are left out.

    Returns:
        32 bytes, so that a cache holds no long texts.
    """
    digest = hashlib.sha256()
    for text in (request.problem, *request.steps):
        encoded = text.encode("utf-8", errors="surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little"))  # or ("ab", "c") would be ("a", "bc")
        digest.update(encoded)
    return digest.digest()


@dataclass
class _Call:
    """A request on its way to the scorer, and how many callers wait for it."""

    task: asyncio.Task[StepLogits]
    waiting: int = 0


class ScoreCache:
    """Least recently used answers leave first; failures are not kept. Lives on one event loop.

    Example:
        >>> score_steps = ScoreCache(dispatcher, max_entries=4096)
        >>> await score_steps(ScoreRequest("r0", "1+1?", ("It is 2.",)))
    """

    def __init__(self, score_steps: ScoreSteps, max_entries: int) -> None:
        """Begin empty.

        Args:
            score_steps: Who is asked.
            max_entries: Answers kept at most.
        """
        if max_entries < 1:
            raise ValueError(f"max_entries={max_entries}: a cache holds at least one answer")
        self._score_steps = score_steps
        self._max_entries = max_entries
        self._answers: OrderedDict[bytes, StepLogits] = OrderedDict()
        self._calls: dict[bytes, _Call] = {}
        self._counts: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._answers)

    @property
    def counts(self) -> dict[str, int]:
        """What happened so far: requests answered without scoring, and requests that had to be scored."""
        return {name: self._counts[name] for name in ("cache_hits", "cache_misses")}

    async def __call__(self, request: ScoreRequest) -> StepLogits:
        """Answer from memory, join an identical request on its way, or score.

        Args:
            request: The response.

        Raises:
            Exception: Whatever the scorer raises, to everyone who waited for this call; the next request tries anew.
        """
        key = score_key(request)
        known = self._answers.get(key)
        if known is not None:
            self._answers.move_to_end(key)
            self._counts["cache_hits"] += 1
            return _as_cached(known)
        joins = key in self._calls
        answer = await self._wait_for(key, request)
        self._counts["cache_hits" if joins else "cache_misses"] += 1
        return _as_cached(answer) if joins else answer

    async def _wait_for(self, key: bytes, request: ScoreRequest) -> StepLogits:
        """Share one call; it is cancelled when the last one who waits for it is."""
        call = self._calls.get(key)
        if call is None:
            call = self._calls[key] = _Call(asyncio.get_running_loop().create_task(self._score(key, request)))
        call.waiting += 1
        try:
            return await asyncio.shield(call.task)
        finally:
            call.waiting -= 1
            if not call.waiting and self._calls.get(key) is call:
                del self._calls[key]  # at once: nobody may join a call that is being cancelled
                call.task.cancel()

    async def _score(self, key: bytes, request: ScoreRequest) -> StepLogits:
        answer = await self._score_steps(request)
        if len(answer.logits) == len(request.steps) and np.isfinite(answer.logits).all():
            self._keep(key, answer)
        return answer

    def _keep(self, key: bytes, answer: StepLogits) -> None:
        logits = answer.logits.copy()
        logits.setflags(write=False)  # many callers will hold it
        self._answers[key] = replace(answer, logits=logits)
        if len(self._answers) > self._max_entries:
            self._answers.popitem(last=False)


def _as_cached(answer: StepLogits) -> StepLogits:
    """Keep what was done to the text; that the first scoring took several attempts says nothing of this answer."""
    return replace(answer, flags=(*(flag for flag in answer.flags if flag not in ("retried", "cached")), "cached"))
