# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio

import pytest

from verl.rollout.update_gate import UpdateGate


async def visit(gate: UpdateGate, name: str, log: list[str], stay: asyncio.Event) -> None:
    async with gate.passing():
        log.append(f"{name} in")
        await stay.wait()
    log.append(f"{name} out")


def test_who_is_inside_ends_and_who_comes_later_waits() -> None:
    async def run() -> list[str]:
        gate, log, stay = UpdateGate(), [], asyncio.Event()
        first = asyncio.create_task(visit(gate, "first", log, stay))
        await asyncio.sleep(0)
        gate.close()
        second = asyncio.create_task(visit(gate, "second", log, stay))
        await asyncio.sleep(0)
        assert gate.in_flight == 1
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(gate.drained(), 0.01)
        stay.set()
        await gate.drained()
        log.append("update")
        await asyncio.sleep(0.01)
        gate.open()
        await asyncio.gather(first, second)
        return log

    assert asyncio.run(run()) == ["first in", "first out", "update", "second in", "second out"]


def test_a_cancelled_visitor_is_no_longer_inside() -> None:
    async def run() -> int:
        gate = UpdateGate()
        task = asyncio.create_task(visit(gate, "x", [], asyncio.Event()))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        await asyncio.wait_for(gate.drained(), 1)
        return gate.in_flight

    assert asyncio.run(run()) == 0


def test_a_gate_that_closes_again_at_once_lets_nobody_slip_through() -> None:
    async def run() -> list[str]:
        gate, log, stay = UpdateGate(), [], asyncio.Event()
        stay.set()
        gate.close()
        task = asyncio.create_task(visit(gate, "x", log, stay))
        await asyncio.sleep(0)
        gate.open()
        gate.close()
        await asyncio.sleep(0.01)
        assert log == []
        gate.open()
        await task
        return log

    assert asyncio.run(run()) == ["x in", "x out"]
