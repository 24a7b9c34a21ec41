# SPDX-License-Identifier: Apache-2.0
"""The score cache: what counts as the same request, sharing, eviction, failures, cancellation."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl.rewards.prm.cache import ScoreCache, score_key
from verl.rewards.prm.types import ScoreRequest, StepLogits


class Scorer:
    """Gives every request a number of its own, once `gate` is open; raises what is in `errors` first."""

    def __init__(self, errors=(), flags=(), value=None) -> None:
        self.errors, self.flags, self.value = list(errors), flags, value
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked: list[str] = []
        self.cancelled = 0

    async def __call__(self, request: ScoreRequest) -> StepLogits:
        self.asked.append(request.request_id)
        number = len(self.asked) if self.value is None else self.value
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.errors:
            raise self.errors.pop(0)
        return StepLogits(np.full((len(request.steps), 2), number, np.float32), self.flags)


def request(name: str = "a", problem: str = "1+1?", steps=("one\n\n", "two")) -> ScoreRequest:
    return ScoreRequest(name, problem, tuple(steps))


def test_the_second_identical_request_is_answered_from_memory_and_says_so():
    scorer = Scorer(flags=("windowed", "retried"))

    async def run():
        cache = ScoreCache(scorer, 8)
        return await cache(request("a")), await cache(request("b")), cache.counts

    first, second, counts = asyncio.run(run())
    assert scorer.asked == ["a"] and counts == {"cache_hits": 1, "cache_misses": 1}
    np.testing.assert_array_equal(first.logits, second.logits)
    assert first.flags == ("windowed", "retried")
    assert second.flags == ("windowed", "cached"), "this answer took no retry"


@pytest.mark.parametrize(
    "other",
    [
        {"problem": "1+2?"},
        {"steps": ("one\n\ntwo",)},
        {"steps": ("one", "\n\ntwo")},
        {"steps": ("one\n\n", "two", "")},
        {"problem": "1+1?one\n\n", "steps": ("two",)},
    ],
    ids=["problem", "one step", "border", "empty step", "step in the problem"],
)
def test_whatever_changes_the_score_is_another_request(other):
    scorer = Scorer()

    async def run():
        cache = ScoreCache(scorer, 8)
        await cache(request("a"))
        return await cache(request("b", **other))

    assert "cached" not in asyncio.run(run()).flags and scorer.asked == ["a", "b"]


texts = st.text(max_size=6)


@given(st.tuples(texts, st.lists(texts, max_size=4)), st.tuples(texts, st.lists(texts, max_size=4)))
def test_keys_agree_exactly_where_problem_and_steps_do(left, right):
    first, second = request("a", left[0], left[1]), replace(request("b", right[0], right[1]), num_tokens=7)
    assert (score_key(first) == score_key(second)) == (left == right)


def test_a_lone_surrogate_has_a_key():
    assert len(score_key(request(problem="\ud800"))) == 32


def test_identical_requests_at_once_share_one_call():
    scorer = Scorer()

    async def run():
        scorer.gate.clear()
        cache = ScoreCache(scorer, 8)
        tasks = [asyncio.create_task(cache(request(name))) for name in "abcd"]
        await asyncio.sleep(0)
        scorer.gate.set()
        return await asyncio.gather(*tasks), cache.counts

    answers, counts = asyncio.run(run())
    assert scorer.asked == ["a"] and counts == {"cache_hits": 3, "cache_misses": 1}
    assert [answer.flags for answer in answers] == [(), ("cached",), ("cached",), ("cached",)]
    assert {float(answer.logits[0, 0]) for answer in answers} == {1.0}


def test_the_least_recently_used_answer_leaves_first():
    scorer = Scorer()

    async def run():
        cache = ScoreCache(scorer, 2)
        for problem in ("x", "y", "x", "z", "x", "y"):  # z drives y out, since x was used after it
            await cache(request(problem, problem))
        return len(cache)

    assert asyncio.run(run()) == 2
    assert scorer.asked == ["x", "y", "z", "y"]


def test_a_failure_reaches_everyone_who_waited_and_is_not_kept():
    scorer = Scorer(errors=[ConnectionError("gone")])

    async def run():
        cache = ScoreCache(scorer, 8)
        failed = await asyncio.gather(cache(request("a")), cache(request("b")), return_exceptions=True)
        return failed, await cache(request("c")), cache.counts

    failed, answer, counts = asyncio.run(run())
    assert [type(each) for each in failed] == [ConnectionError] * 2
    assert scorer.asked == ["a", "c"] and answer.flags == () and counts == {"cache_hits": 0, "cache_misses": 1}


def test_unusable_logits_are_not_kept():
    scorer = Scorer(value=float("nan"))

    async def run():
        cache = ScoreCache(scorer, 8)
        await cache(request("a"))
        await cache(request("b"))
        return len(cache)

    assert asyncio.run(run()) == 0 and scorer.asked == ["a", "b"]


def test_who_waits_is_not_harmed_by_another_ones_cancellation():
    scorer = Scorer()

    async def run():
        scorer.gate.clear()
        cache = ScoreCache(scorer, 8)
        first, second = (asyncio.create_task(cache(request(name))) for name in "ab")
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.sleep(0)
        scorer.gate.set()
        return await second

    assert len(asyncio.run(run()).logits) == 2
    assert scorer.asked == ["a"] and not scorer.cancelled


def test_a_call_nobody_waits_for_any_more_ends_and_nobody_joins_it():
    scorer = Scorer()

    async def run():
        scorer.gate.clear()
        cache = ScoreCache(scorer, 8)
        first = asyncio.create_task(cache(request("a")))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        first.cancel()
        late = asyncio.create_task(cache(request("b")))
        await asyncio.sleep(0.01)
        scorer.gate.set()
        return await late

    assert "cached" not in asyncio.run(run()).flags
    assert scorer.asked == ["a", "b"] and scorer.cancelled == 1


def test_kept_logits_cannot_be_changed_by_a_caller():
    async def run():
        cache = ScoreCache(Scorer(), 8)
        (await cache(request("a"))).logits[:] = 99.0  # the first caller's own
        return await cache(request("b"))

    answer = asyncio.run(run())
    assert float(answer.logits[0, 0]) == 1.0
    with pytest.raises(ValueError, match="read-only"):
        answer.logits[0, 0] = 5.0


def test_a_cache_for_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        ScoreCache(Scorer(), 0)
