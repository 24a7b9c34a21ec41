# SPDX-License-Identifier: Apache-2.0
"""Requests over replicas: balance, bounds, retries elsewhere, time limits, death."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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


class GatedReplica(Replica):
    """Answers nothing until `gate` is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.tokens = 0

    async def __call__(self, request: ScoreRequest) -> StepLogits:
        self.tokens += request.num_tokens or 0
        await self.gate.wait()
        return await super().__call__(request)


def request(name: str = "r", tokens: int = 10) -> ScoreRequest:
    return ScoreRequest(name, "", ("x",), num_tokens=tokens)


def dispatcher(*replicas, **settings) -> Dispatcher:
    return Dispatcher({f"prm-{n}": r for n, r in enumerate(replicas)}, DispatchSettings(**settings))


def test_work_goes_to_the_replica_with_the_least_queued():
    first, second = Replica(delay_s=0.05), Replica(delay_s=0.05)

    async def run():
        score = dispatcher(first, second)
        await asyncio.gather(*(score(request(f"r{n}", tokens)) for n, tokens in enumerate([1000, 10, 10, 10, 10])))

    asyncio.run(run())
    assert (len(first.seen), len(second.seen)) == (1, 4)


def test_tokens_count_not_characters():
    first, second = GatedReplica(), GatedReplica()
    wordy = ScoreRequest("wordy", "", ("x" * 10_000,), num_tokens=20)
    dense = [ScoreRequest(f"dense{n}", "", ("x" * 10,), num_tokens=50) for n in range(2)]

    async def run():
        score = dispatcher(first, second)
        tasks = [asyncio.create_task(score(one)) for one in (wordy, *dense)]
        await asyncio.sleep(0)
        queued = score.queued_tokens
        first.gate.set(), second.gate.set()
        await asyncio.gather(*tasks)
        return queued, score.queued_tokens

    queued, left = asyncio.run(run())
    assert queued == {"prm-0": 70, "prm-1": 50}
    assert left == {"prm-0": 0, "prm-1": 0}


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=60), st.integers(2, 4))
def test_no_replica_is_ahead_of_another_by_more_than_one_response(lengths, num_replicas):
    replicas = [GatedReplica() for _ in range(num_replicas)]

    async def run():
        score = dispatcher(*replicas)
        tasks = [asyncio.create_task(score(request(f"r{n}", length))) for n, length in enumerate(lengths)]
        await asyncio.sleep(0)
        queued = score.queued_tokens
        for replica in replicas:
            replica.gate.set()
        await asyncio.gather(*tasks)
        return queued, score.queued_tokens

    queued, left = asyncio.run(run())
    assert sum(queued.values()) == sum(lengths)
    assert max(queued.values()) - min(queued.values()) <= max(lengths)
    assert set(left.values()) == {0}


def test_a_slow_replica_gets_less():
    slow, fast = Replica(delay_s=0.03), Replica(delay_s=0.001)

    async def run():
        score = dispatcher(slow, fast, max_in_flight=2)
        await asyncio.gather(*(score(request(f"r{n}")) for n in range(40)))

    asyncio.run(run())
    assert len(fast.seen) > 3 * len(slow.seen) > 0


def test_who_waits_for_room_is_served_in_order():
    replica = Replica(delay_s=0.001)

    async def run():
        score = dispatcher(replica, max_in_flight=1)
        await asyncio.gather(*(score(request(f"r{n}")) for n in range(12)))

    asyncio.run(run())
    assert replica.seen == [f"r{n}" for n in range(12)]


@given(st.lists(st.sampled_from(["run", "cancel"]), min_size=1, max_size=12), st.integers(0, 3))
def test_cancelled_requests_give_their_room_back(fates, turns_before):
    """Whether a request is cancelled before, while or after it gets its room: nothing stays reserved."""
    replica = GatedReplica()

    async def run():
        score = dispatcher(replica, max_in_flight=2)
        tasks = [asyncio.create_task(score(request(f"r{n}"))) for n in range(len(fates))]
        for _ in range(turns_before):
            await asyncio.sleep(0)
        for task, fate in zip(tasks, fates, strict=True):
            if fate == "cancel":
                task.cancel()
            await asyncio.sleep(0)
        replica.gate.set()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        return outcomes, score.queued_tokens, await score(request("after"))

    outcomes, left, after = asyncio.run(run())
    kinds = ["cancel" if isinstance(outcome, asyncio.CancelledError) else "run" for outcome in outcomes]
    assert kinds == fates and left == {"prm-0": 0} and len(after.logits) == 1
    assert replica.most_running <= 2


def test_room_given_to_a_request_that_was_just_cancelled_goes_on_to_the_next():
    replica = GatedReplica()

    async def run():
        score = dispatcher(replica, max_in_flight=1)
        running, next_one, last = (asyncio.create_task(score(request(name))) for name in ("a", "b", "c"))
        await asyncio.sleep(0)
        running.cancel()
        await asyncio.sleep(0)  # `a` gave its room to `b`, which has not heard of it yet
        next_one.cancel()
        replica.gate.set()
        return await asyncio.wait_for(last, 5)

    assert len(asyncio.run(run()).logits) == 1
    assert replica.seen == ["c"]


def test_a_request_waits_for_a_replica_it_has_not_tried_while_those_behind_it_go_on():
    broken, busy = Replica(errors=[RuntimeError("boom")]), GatedReplica()

    async def run():
        score = dispatcher(broken, busy, max_in_flight=1)
        retried = asyncio.create_task(score(request("retried", 1)))
        holder = asyncio.create_task(score(request("holder", 1)))
        waiting = asyncio.create_task(score(request("behind", 1)))
        await asyncio.wait_for(waiting, 5)  # on `broken`, which works again, though `retried` waits for `busy`
        assert not retried.done()
        busy.gate.set()
        return await asyncio.gather(retried, holder)

    retried, _ = asyncio.run(run())
    assert retried.flags == ("retried",)
    assert broken.seen == ["retried", "behind"] and busy.seen == ["holder", "retried"]


def test_in_flight_is_bounded_and_everything_is_answered():
    replica = Replica(delay_s=0.005)

    async def run():
        score = dispatcher(replica, max_in_flight=3)
        return await asyncio.gather(*(score(request(f"r{n}")) for n in range(20))), score.counts

    answers, counts = asyncio.run(run())
    assert replica.most_running == 3 and len(answers) == 20
    assert counts == {"scored": 20, "retries": 0, "timeouts": 0, "failures": 0, "alive": 1}


class Looked(dict):
    """Counts the entries that are looked at."""

    num_looks = 0

    def __iter__(self):
        for key in super().__iter__():
            self.num_looks += 1
            yield key


def test_an_answer_does_not_cost_a_look_at_everyone_who_waits():
    spread = dispatcher(Replica(), max_in_flight=2)
    spread._waiting = Looked()

    async def run() -> None:
        await asyncio.gather(*(spread(request(str(number))) for number in range(300)))

    asyncio.run(run())
    assert spread.counts["scored"] == 300
    assert 298 <= spread._waiting.num_looks <= 4 * 300


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
