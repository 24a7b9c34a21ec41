# SPDX-License-Identifier: Apache-2.0
"""Requests over replicas: balance, bounds, retries elsewhere, time limits, death."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from verl.rewards.prm.dispatch import Dispatcher, DispatchSettings, NoReplicaError, ScoringFailedError
from verl.rewards.prm.types import PRMInputError, ScoreRequest, StepLogits


class Replica:
    """Answers with its number after `delay_s`, or raises what is in `errors` first."""

    def __init__(self, number: float = 0.0, delay_s: float = 0.0, errors=()) -> None:
        self.number = number
        self.delay_s = delay_s
        self.errors = list(errors)
        self.seen: list[str] = []
        self.running = self.most_running = 0

    async def __call__(self, request: ScoreRequest) -> StepLogits:
        self.seen.append(request.request_id)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await asyncio.sleep(self.delay_s)
            if self.errors:
                raise self.errors.pop(0)
            return StepLogits(np.full((len(request.steps), 2), self.number, dtype=np.float32))
        finally:
            self.running -= 1


def request(name: str = "r", chars: int = 10) -> ScoreRequest:
    return ScoreRequest(name, "", ("x" * chars,))


def dispatcher(*replicas, **settings) -> Dispatcher:
    return Dispatcher({f"prm-{n}": r for n, r in enumerate(replicas)}, DispatchSettings(**settings))


def test_work_goes_to_the_replica_with_the_least_queued():
    first, second = Replica(delay_s=0.05), Replica(delay_s=0.05)

    async def run():
        score = dispatcher(first, second)
        await asyncio.gather(*(score(request(f"r{n}", chars)) for n, chars in enumerate([1000, 10, 10, 10, 10])))

    asyncio.run(run())
    assert (len(first.seen), len(second.seen)) == (1, 4)


def test_in_flight_is_bounded_and_everything_is_answered():
    replica = Replica(delay_s=0.005)

    async def run():
        score = dispatcher(replica, max_in_flight=3)
        return await asyncio.gather(*(score(request(f"r{n}")) for n in range(20))), score.counts

    answers, counts = asyncio.run(run())
    assert replica.most_running == 3 and len(answers) == 20
    assert counts == {"scored": 20, "retries": 0, "timeouts": 0, "failures": 0, "alive": 1}


def test_a_failure_is_tried_again_on_another_replica_and_flagged():
    broken, healthy = Replica(1.0, errors=[RuntimeError("boom")] * 9), Replica(2.0)

    async def run():
        score = dispatcher(broken, healthy)
        return await score(request()), score.counts

    answer, counts = asyncio.run(run())
    assert answer.flags == ("retried",) and answer.logits[0, 0] == 2.0
    assert counts["retries"] == counts["failures"] == 1 and counts["alive"] == 2


def test_a_single_replica_is_asked_again():
    replica = Replica(errors=[RuntimeError("once")])

    async def run():
        return await dispatcher(replica)(request())

    assert asyncio.run(run()).flags == ("retried",)
    assert len(replica.seen) == 2


def test_attempts_end():
    async def run():
        await dispatcher(Replica(errors=[RuntimeError("boom")] * 9), max_attempts=2)(request("r7"))

    with pytest.raises(ScoringFailedError, match="r7: no step scores after 2 attempts.*boom"):
        asyncio.run(run())


def test_a_hanging_replica_is_left_after_the_time_limit():
    hanging, healthy = Replica(delay_s=60), Replica(2.0)

    async def run():
        score = dispatcher(hanging, healthy, timeout_s=0.05)
        return await score(request()), score.counts

    answer, counts = asyncio.run(run())
    assert answer.logits[0, 0] == 2.0 and counts["timeouts"] == 1
    assert hanging.running == 0, "the hanging call was cancelled"


def test_a_dead_replica_gets_nothing_more():
    dead, healthy = Replica(errors=[ConnectionError("gone")] * 9), Replica(2.0)

    async def run():
        score = dispatcher(dead, healthy, is_dead=lambda err: isinstance(err, ConnectionError))
        for n in range(5):
            await score(request(f"r{n}"))
        return score.counts

    assert asyncio.run(run())["alive"] == 1
    assert len(dead.seen) == 1


def test_a_replica_that_only_fails_counts_as_dead():
    broken, healthy = Replica(errors=[RuntimeError("boom")] * 99), Replica()

    async def run():
        score = dispatcher(broken, healthy, max_failures_in_row=3)
        for n in range(8):
            await score(request(f"r{n}"))
        return score.counts

    assert asyncio.run(run())["alive"] == 1
    assert len(broken.seen) == 3


def test_callers_who_wait_for_room_learn_that_everyone_is_dead():
    async def run():
        score = dispatcher(
            Replica(delay_s=0.02, errors=[ConnectionError()] * 9), max_in_flight=1, is_dead=lambda err: True
        )
        return await asyncio.gather(*(score(request(f"r{n}")) for n in range(4)), return_exceptions=True)

    assert [type(outcome) for outcome in asyncio.run(run())] == [NoReplicaError] * 4


def test_what_can_never_be_scored_is_not_tried_again():
    replica = Replica(errors=[PRMInputError("too long")])

    async def run():
        await dispatcher(replica)(request())

    with pytest.raises(PRMInputError, match="too long"):
        asyncio.run(run())
    assert len(replica.seen) == 1


def test_nan_is_a_failure_and_tried_again():
    async def run():
        return await dispatcher(Replica(float("nan")), Replica(2.0))(request())

    answer = asyncio.run(run())
    assert answer.flags == ("retried",) and answer.logits[0, 0] == 2.0


def test_an_answer_of_the_wrong_length_is_a_failure():
    class Short(Replica):
        async def __call__(self, request):
            return StepLogits(np.zeros((0, 2), np.float32))

    async def run():
        await dispatcher(Short())(request())

    with pytest.raises(ScoringFailedError, match="0 scores for 1 reasoning steps"):
        asyncio.run(run())


@pytest.mark.parametrize("bad", [{"max_in_flight": 0}, {"max_attempts": 0}, {"timeout_s": 0}])
def test_limits_under_which_nothing_works_are_refused(bad):
    with pytest.raises(ValueError, match="limits must be positive"):
        DispatchSettings(**bad)
