# SPDX-License-Identifier: Apache-2.0
"""Servers that die, fail or say nothing in the middle of a weight sync: one clear error, no endless wait."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from ray.exceptions import ActorDiedError, RayTaskError

from verl.weight_sync.base import WeightSyncFailedError
from verl.weight_sync.shared_memory import SharedMemorySender
from verl.workers.weight_client import RayWeightSyncClient

Behaviour = Callable[[str], None]


class SilentError(Exception):
    """What a fake server raises when it is never to answer."""


class FakeServer:
    """Behaves as told on each message, and remembers what it was told."""

    def __init__(self, behaviour: Behaviour = lambda method: None) -> None:
        self.messages: list[tuple[str, tuple[Any, ...]]] = []
        self._behaviour = behaviour

    def __getattr__(self, method: str) -> Any:
        return _FakeMethod(self, method)

    def answer(self, method: str, args: tuple[Any, ...]) -> Any:
        self.messages.append((method, args))
        return _Reference(lambda: self._behaviour(method))


class _FakeMethod:
    def __init__(self, server: FakeServer, name: str) -> None:
        self._server, self._name = server, name

    def remote(self, *args: Any) -> Any:
        return self._server.answer(self._name, args)


class _Reference:
    """The outcome of one call, known when the fake Ray looks."""

    def __init__(self, work: Callable[[], None]) -> None:
        try:
            work()
            self.error: Exception | None = None
        except (ActorDiedError, RayTaskError, SilentError) as error:
            self.error = error


class FakeRay:
    """`wait` and `get` over such references; a silent one is waited for as long as the caller allows."""

    def __init__(self) -> None:
        self.waited_s: list[float] = []

    def wait(
        self, pending: Sequence[_Reference], num_returns: int, timeout: float
    ) -> tuple[list[_Reference], list[_Reference]]:
        ready = [reference for reference in pending if not isinstance(reference.error, SilentError)][:num_returns]
        if not ready:
            self.waited_s.append(timeout)
            time.sleep(timeout)
        return ready, [reference for reference in pending if reference not in ready]

    def get(self, reference: _Reference) -> None:
        if reference.error is not None:
            raise reference.error


def client(*servers: FakeServer, timeout_s: float = 5.0) -> RayWeightSyncClient:
    return RayWeightSyncClient(servers, timeout_s, FakeRay())


def on(message: str, error: Exception) -> Behaviour:
    def behave(method: str) -> None:
        if method == message:
            raise error

    return behave


def test_every_server_gets_every_message() -> None:
    servers = [FakeServer(), FakeServer()]
    speaker = client(*servers)
    speaker.init_transfer({"a": 1})
    speaker.start_update()
    speaker.update({"names": ["w"]})
    speaker.finish_update(7)
    speaker.sync({"names": ["v"]}, 8)
    expected = [
        ("init_transfer", ({"a": 1},)),
        ("start_update", ()),
        ("update", ({"names": ["w"]},)),
        ("finish_update", (7,)),
        ("sync", ({"names": ["v"]}, 8)),
    ]
    assert [server.messages for server in servers] == [expected, expected]


def test_every_server_gets_its_own_ranks_of_a_group() -> None:
    servers = [FakeServer(), FakeServer(), FakeServer()]
    speaker = RayWeightSyncClient(servers, 5.0, FakeRay(), ranks_per_server=2)
    assert speaker.num_receivers == 6
    speaker.init_group({"master_port": 5})
    assert [server.messages for server in servers] == [
        [("init_transfer", ({"master_port": 5, "rank_offset": offset},))] for offset in (1, 3, 5)
    ]


def test_a_server_that_dies_is_named() -> None:
    speaker = client(FakeServer(), FakeServer(), FakeServer(on("update", ActorDiedError())))
    speaker.start_update()
    with pytest.raises(WeightSyncFailedError, match=r"rollout server 2 of 3 \(counted from 0\) died during update"):
        speaker.update({})


def test_a_server_that_fails_is_named_with_its_reason() -> None:
    error = RayTaskError("update", "remote traceback", ValueError("missing model.norm.weight"))
    with pytest.raises(WeightSyncFailedError, match=r"server 1 of 2 .*failed in update: ValueError: missing model"):
        client(FakeServer(), FakeServer(on("update", error))).update({})


def test_a_death_ends_the_wait_for_servers_that_say_nothing() -> None:
    calls = FakeRay()
    servers = (FakeServer(on("update", SilentError())), FakeServer(on("update", ActorDiedError())))
    with pytest.raises(WeightSyncFailedError, match=r"server 1 of 2"):
        RayWeightSyncClient(servers, 1e6, calls).update({})
    assert calls.waited_s == []


def test_silence_has_a_limit_and_the_silent_are_named() -> None:
    servers = (
        FakeServer(on("start_update", SilentError())),
        FakeServer(),
        FakeServer(on("start_update", SilentError())),
    )
    said = r"server\(s\) 0, 2 of 3 .*did not answer start_update in 0.05 s .*weight_sync_timeout_s"
    with pytest.raises(WeightSyncFailedError, match=said):
        client(*servers, timeout_s=0.05).start_update()


def test_a_sync_that_breaks_off_leaves_no_file_and_says_nothing_more(tmp_path: Path) -> None:
    healthy, dying = FakeServer(), FakeServer(on("sync", ActorDiedError()))
    sender = SharedMemorySender(client(healthy, dying), is_leader=True, directory=tmp_path)
    with pytest.raises(WeightSyncFailedError, match="server 1 of 2"):
        sender.send([("w", torch.ones(3))], version=2, verify=False)
    assert list(tmp_path.iterdir()) == []
    assert [method for method, _ in healthy.messages] == ["init_transfer", "sync"]
