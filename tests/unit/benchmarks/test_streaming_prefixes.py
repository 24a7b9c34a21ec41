# SPDX-License-Identifier: Apache-2.0
"""The streaming benchmark's own logic, with an engine made of arithmetic: prefixes, pace, waiting times, scenarios."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from benchmarks.streaming_prefixes import Growing, Rollout, scenario_answers
from verl.rewards.prm.types import PRMInput

RESPONSE = Growing(PRMInput(list(range(100, 110)), np.array([3, 5, 9])))


async def sum_of_prefix(name: str, item: PRMInput) -> np.ndarray:
    """A causal "PRM": each row is a sum over everything up to its position."""
    totals = np.cumsum(item.token_ids)[item.score_positions]
    return np.stack([np.zeros(len(totals)), totals], axis=1)


def test_a_prefix_ends_with_its_step_and_asks_for_that_step_only() -> None:
    assert RESPONSE.ends() == [4, 6, 10]
    prefix = RESPONSE.prefix(1)
    assert prefix.token_ids == [100, 101, 102, 103, 104, 105]
    assert (prefix.score_positions.tolist(), prefix.first_step) == ([5], 1)


def test_both_modes_give_the_same_rows() -> None:
    async def run(mode: str) -> list[np.ndarray]:
        return (await Rollout(sum_of_prefix, float("inf")).run([RESPONSE, RESPONSE], mode))[0]

    whole, steps = asyncio.run(run("whole")), asyncio.run(run("steps"))
    assert len(whole) == 2
    for left, right in zip(whole, steps, strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize(("mode", "first_asked"), [("whole", ["r0"]), ("steps", ["r0-0", "r0-1", "r0-2"])])
def test_steps_are_asked_for_when_they_end_and_waiting_counts_from_the_last_token(
    mode: str, first_asked: list[str]
) -> None:
    asked: list[str] = []

    async def slow(name: str, item: PRMInput) -> np.ndarray:
        asked.append(name)
        await asyncio.sleep(0.1)
        return await sum_of_prefix(name, item)

    async def run() -> list[float]:
        short = Growing(PRMInput([1, 2], np.array([1])))
        return (await Rollout(slow, pace=10.0).run([RESPONSE, short], mode))[1]  # 1.0 s and 0.2 s

    waits = asyncio.run(run())
    assert [name for name in asked if name.startswith("r0")] == first_asked
    assert waits[0] > 0.09, "the last step is there only after the last token"
    assert waits[1] < 0.0 < waits[0], "the short response was scored while the long one grew"


def test_at_the_limit_a_third_are_equally_long_but_not_the_same() -> None:
    answers = scenario_answers("limit", 12, 1500, seed=0)
    longest = max(len(answer.response) for answer in answers)
    at_limit = [answer.response for answer in answers if len(answer.response) == longest]
    assert len(at_limit) == len(set(at_limit)) == 4
    tail = scenario_answers("tail", 12, 1500, seed=0)
    assert sum(len(answer.response) == max(len(a.response) for a in tail) for answer in tail) == 1
