# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from verl.utils.async_loop import BackgroundLoop


@pytest.fixture
def loop() -> Iterator[BackgroundLoop]:
    loop = BackgroundLoop("test-loop")
    yield loop
    loop.close()


def test_coroutines_run_on_the_named_thread_while_the_caller_goes_on(loop: BackgroundLoop) -> None:
    gate = threading.Event()

    async def work() -> str:
        await asyncio.to_thread(gate.wait)
        return threading.current_thread().name

    future = loop.submit(work())
    assert not future.done()
    gate.set()
    assert future.result(timeout=30) == "test-loop"


def test_all_coroutines_share_one_event_loop(loop: BackgroundLoop) -> None:
    async def pass_on(source: asyncio.Queue[int], target: asyncio.Queue[int]) -> int:
        await target.put(await source.get() + 1)
        return target.qsize()

    async def make() -> tuple[asyncio.Queue[int], asyncio.Queue[int]]:
        return asyncio.Queue(), asyncio.Queue()

    first, second = loop.run(make())
    waiting = loop.submit(pass_on(first, second))
    loop.run(first.put(1))
    assert waiting.result(timeout=30) == 1
    assert loop.run(second.get()) == 2


def test_an_exception_reaches_the_caller(loop: BackgroundLoop) -> None:
    async def fail() -> None:
        raise KeyError("why")

    with pytest.raises(KeyError, match="why"):
        loop.run(fail())
    with pytest.raises(KeyError, match="why"):
        loop.submit(fail()).result(timeout=30)
    assert loop.run(asyncio.sleep(0, result="still there")) == "still there"


def test_time_out_cancels_the_coroutine(loop: BackgroundLoop) -> None:
    cancelled = threading.Event()

    async def sleep() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    with pytest.raises(TimeoutError):
        loop.run(sleep(), timeout_s=0.05)
    assert cancelled.wait(timeout=30)


def test_close_ends_the_thread_even_with_work_left() -> None:
    loop = BackgroundLoop("test-close")
    ended: list[str] = []

    async def wait(polite: bool) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cancelled")
            await asyncio.sleep(0 if polite else 3600)
            ended.append("ended")

    loop.submit(wait(polite=True))
    loop.submit(wait(polite=False))
    loop.run(asyncio.sleep(0))
    loop.close()
    assert ended == ["cancelled", "cancelled", "ended"]
    assert "test-close" not in {thread.name for thread in threading.enumerate()}
    loop.close()  # twice is allowed
    late = asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="closed"):  # and not a wait without end
        loop.run(late, timeout_s=30)
    late.close()
