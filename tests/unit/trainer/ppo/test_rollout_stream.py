# SPDX-License-Identifier: Apache-2.0
"""Groups over servers that answer from a script: order, balance, time limit, failures."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from tests.helpers.rollouts import FakeServer, GatedServer
from verl.rollout.base import SamplingSettings
from verl.rollout.to_batch import RolloutOutput
from verl.trainer.ppo.rollout_stream import RolloutStream, SubmitSettings
from verl.workers.rollout_server import GroupRequest

SAMPLING = SamplingSettings(max_new_tokens=4)


def request(uid: str, num_responses: int = 3) -> GroupRequest:
    return GroupRequest(uid=uid, prompt_token_ids=[5], num_responses=num_responses, sampling=SAMPLING)


def generate(
    servers: list[FakeServer], requests: list[GroupRequest], timeout_s: float = 1000.0
) -> tuple[list[list[RolloutOutput]], list[tuple[str, int]]]:
    arrived: list[tuple[str, int]] = []
    stream = RolloutStream(servers, timeout_s)
    work = stream.generate(requests, lambda output: arrived.append((output.uid, output.index)))
    return asyncio.run(asyncio.wait_for(work, timeout=30)), arrived


def test_responses_come_back_in_the_order_of_the_requests_and_are_announced_as_they_finish() -> None:
    server = FakeServer(lambda request, index: f"{request.uid}{index}", order=lambda request: [2, 0, 1])
    outputs, arrived = generate([server], [request("b"), request("a")])
    assert [[output.text for output in group] for group in outputs] == [["b0", "b1", "b2"], ["a0", "a1", "a2"]]
    assert [index for uid, index in arrived if uid == "a"] == [2, 0, 1]
    assert sorted(arrived) == sorted((uid, index) for uid in "ab" for index in range(3))


def test_a_response_is_announced_before_its_group_is_complete() -> None:
    async def run() -> list[int]:
        arrived: list[int] = []
        stream = RolloutStream([FakeServer(hang_on="late")], timeout_s=0.2)
        requests = [request("late"), request("a")]
        with pytest.raises(RuntimeError, match=r"1 of 2 groups.*timeout_s.*\['late'\]"):
            await stream.generate(requests, lambda output: arrived.append(output.index))
        return arrived

    assert asyncio.run(run()) == [0, 1, 2]


def test_held_responses_are_announced_when_all_are_complete_and_not_at_all_after_a_failure() -> None:
    async def run(servers: list[FakeServer]) -> list[tuple[str, int]]:
        arrived: list[tuple[str, int]] = []
        seen_by_last: list[int] = []

        def last_answers(group: GroupRequest, index: int) -> str:
            seen_by_last.append(len(arrived))
            return "x"

        stream = RolloutStream([FakeServer(last_answers), *servers], timeout_s=0.2)
        work = stream.generate(
            [request("a"), request("b")], lambda output: arrived.append((output.uid, output.index)), hold=True
        )
        await asyncio.gather(work, return_exceptions=True)
        assert seen_by_last and set(seen_by_last) == {0}
        return arrived

    arrived = asyncio.run(run([FakeServer()]))
    assert sorted(arrived) == [(uid, index) for uid in "ab" for index in range(3)]
    assert asyncio.run(run([FakeServer(hang_on="b")])) == []


def test_groups_go_to_the_server_that_owes_the_fewest_responses() -> None:
    first, second = FakeServer(), FakeServer()
    generate([first, second], [request("big", 8), request("a", 2), request("b", 2), request("c", 3), request("d", 1)])
    assert [r.uid for r in first.requests] == ["big"]
    assert [r.uid for r in second.requests] == ["a", "b", "c", "d"]


def test_nothing_is_owed_any_more_after_success_failure_and_time_out() -> None:
    """Each time the next rollout must begin with the first server again."""

    async def first_server_of(stream: RolloutStream, servers: list[FakeServer]) -> int:
        counts = [len(server.requests) for server in servers]
        await stream.generate([request("probe", 1)], lambda output: None)
        return next(n for n, server in enumerate(servers) if len(server.requests) > counts[n])

    async def run() -> None:
        servers = [FakeServer(hang_on="hang"), FakeServer()]
        stream = RolloutStream(servers, timeout_s=0.1)
        await stream.generate([request("a"), request("b")], lambda output: None)
        assert await first_server_of(stream, servers) == 0
        with pytest.raises(RuntimeError, match="not complete"):
            await stream.generate([request("hang"), request("b")], lambda output: None)
        await asyncio.sleep(0)  # the cancelled group says goodbye on the next turn of the loop
        assert await first_server_of(stream, servers) == 0

    asyncio.run(run())


def test_a_failing_server_ends_the_rollout_at_once() -> None:
    servers = [FakeServer(fail_after=1), FakeServer(hang_on="b")]
    with pytest.raises(RuntimeError, match="rollout failed: the server is gone") as caught:
        generate(servers, [request("a"), request("b")])
    assert isinstance(caught.value.__cause__, ConnectionError)


def test_an_error_in_on_response_is_not_swallowed() -> None:
    def refuse(output: RolloutOutput) -> None:
        raise KeyError("who is that?")

    with pytest.raises(RuntimeError, match="who is that"):
        asyncio.run(RolloutStream([FakeServer()], 30.0).generate([request("a")], refuse))


def prompt(uid: str, token: int) -> GroupRequest:
    return GroupRequest(uid=uid, prompt_token_ids=[token], num_responses=2, sampling=SAMPLING)


def test_prompts_with_the_longest_responses_so_far_are_submitted_first() -> None:
    async def run() -> list[str]:
        server = FakeServer(lambda request, index: "x" * request.prompt_token_ids[0])
        stream = RolloutStream([server], 30.0, submit=SubmitSettings(longest_first=True))
        first = [prompt("short", 2), prompt("long", 30), prompt("middle", 9)]
        await stream.generate(first, lambda output: None)
        assert [r.uid for r in server.requests] == ["short", "long", "middle"]  # nothing is known yet
        again = [prompt("middle", 9), prompt("short", 2), prompt("long", 30)]
        outputs = await stream.generate(again, lambda output: None)
        assert [group[0].uid for group in outputs] == ["middle", "short", "long"]
        return [r.uid for r in server.requests[3:]]

    assert asyncio.run(run()) == ["long", "middle", "short"]


def test_lengths_that_the_data_state_order_the_first_rollout_too() -> None:
    async def run() -> list[str]:
        server = FakeServer(lambda request, index: "x" * 5)
        stream = RolloutStream([server], 30.0, submit=SubmitSettings(longest_first=True))
        await stream.generate([prompt("seen", 5)], lambda output: None)  # 5 tokens and an EOS
        requests = [prompt("new", 1), prompt("seen", 5)]
        requests += [replace(prompt("long", 2), expected_tokens=90.0), replace(prompt("short", 3), expected_tokens=2)]
        await stream.generate(requests, lambda output: None)
        return [r.uid for r in server.requests[1:]]

    assert asyncio.run(run()) == ["long", "new", "seen", "short"]


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_no_server_has_more_groups_than_it_may(limit: int) -> None:
    in_flight = {0: 0, 1: 0}
    most = {0: 0, 1: 0}

    class CountingServer(FakeServer):
        """Counts the groups that are started and not yet complete."""

        def __init__(self, number: int) -> None:
            super().__init__(self.note, order=lambda request: [0, 1, 2])
            self.number = number

        def note(self, request: GroupRequest, index: int) -> str:
            in_flight[self.number] += {0: 1, 1: 0, 2: -1}[index]
            most[self.number] = max(most[self.number], in_flight[self.number])
            return "x"

    servers = [CountingServer(0), CountingServer(1)]
    stream = RolloutStream(servers, 30.0, submit=SubmitSettings(max_in_flight_groups=limit))
    requests = [request(f"g{number}") for number in range(11)]
    outputs = asyncio.run(stream.generate(requests, lambda output: None))
    assert [group[0].uid for group in outputs] == [r.uid for r in requests]
    assert max(most.values()) == limit
    assert all(server.requests for server in servers)


def test_two_rollouts_at_once_share_the_limit_and_the_first_goes_first() -> None:
    async def run() -> list[str]:
        servers = [GatedServer(), GatedServer()]
        stream = RolloutStream(servers, 30.0, submit=SubmitSettings(max_in_flight_groups=2))
        first = asyncio.create_task(stream.generate([request(f"a{n}") for n in range(5)], lambda output: None))
        await asyncio.sleep(0)
        second = asyncio.create_task(stream.generate([request(f"b{n}") for n in range(5)], lambda output: None))
        await asyncio.gather(first, second)
        assert [server.most_in_flight for server in servers] == [2, 2]
        return [each.uid[0] for server in servers for each in server.requests]

    order = asyncio.run(run())
    assert sorted(order) == ["a"] * 5 + ["b"] * 5


def test_paused_it_hands_over_nothing_and_resumed_everything() -> None:
    async def run() -> None:
        server = GatedServer()
        server.closed = {"a"}
        stream = RolloutStream([server], 30.0)
        first = asyncio.create_task(stream.generate([request("a")], lambda output: None))
        await asyncio.sleep(0.01)
        await stream.pause(until_idle=False)
        second = asyncio.create_task(stream.generate([request("b")], lambda output: None))
        idle = asyncio.create_task(stream.pause(until_idle=True))
        await asyncio.sleep(0.05)
        assert not idle.done() and [each.uid for each in server.requests] == ["a"]
        server.closed = set()
        await asyncio.wait_for(asyncio.gather(idle, first), 20)
        assert not second.done() and [each.uid for each in server.requests] == ["a"]
        await stream.resume()
        assert [group[0].uid for group in await asyncio.wait_for(second, 20)] == ["b"]
        await asyncio.wait_for(stream.pause(until_idle=True), 20)  # nothing is in flight

    asyncio.run(run())


def test_paused_and_resumed_in_one_go_it_stays_paused() -> None:
    """A group that was woken by `resume` finds the next `pause` before its turn."""

    async def run() -> None:
        server = GatedServer()
        stream = RolloutStream([server], 30.0)
        await stream.pause(until_idle=True)
        work = asyncio.create_task(stream.generate([request("a")], lambda output: None))
        await asyncio.sleep(0.01)
        await stream.resume()
        await stream.pause(until_idle=True)
        await asyncio.sleep(0.01)
        assert not server.requests
        await stream.resume()
        await asyncio.wait_for(work, 20)

    asyncio.run(run())


def test_a_cancelled_rollout_gives_up_its_groups() -> None:
    async def run() -> None:
        server = GatedServer()
        server.closed = {"a"}
        stream = RolloutStream([server], 30.0)
        work = asyncio.create_task(stream.generate([request("a0"), request("a1")], lambda output: None))
        await asyncio.sleep(0.01)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        await asyncio.wait_for(stream.pause(until_idle=True), 20)
        assert sorted(server.cancelled) == ["a0", "a1"] and server.in_flight == 0

    asyncio.run(run())
