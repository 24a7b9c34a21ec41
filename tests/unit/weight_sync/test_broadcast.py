# SPDX-License-Identifier: Apache-2.0
"""Buckets over a real gloo group with threads for engines: what arrives, in what order, and what a failure does."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.helpers.gloo_engines import GlooEngine, ThreadedClient
from verl.weight_sync.base import WeightStream, WeightSyncFailedError
from verl.weight_sync.broadcast import BroadcastSender, BroadcastSettings
from verl.weight_sync.digest import WeightDigestError
from verl.weight_sync.gloo_group import GlooDoor, own_address

SETTINGS = BroadcastSettings(bucket_bytes=100, timeout_s=20.0)


def weights(seed: int) -> list[tuple[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [(f"w{i}", torch.randn(3 + i, 4, generator=generator)) for i in range(5)]


def stream(seed: int) -> WeightStream:
    return WeightStream(lambda: iter(weights(seed)))


def sender_to(*engines: GlooEngine, settings: BroadcastSettings = SETTINGS) -> BroadcastSender:
    return BroadcastSender(ThreadedClient(*engines), GlooDoor("127.0.0.1", settings.timeout_s), settings)


@pytest.mark.parametrize(
    ("bucket_bytes", "said"), [(1 << 20, ["sync"]), (100, ["start", "update", "update", "update"])]
)
@pytest.mark.parametrize("verify", [True, False])
def test_every_engine_gets_every_tensor_of_every_sync(bucket_bytes: int, said: list[str], verify: bool) -> None:
    engines = [GlooEngine(), GlooEngine()]
    sender = sender_to(*engines, settings=BroadcastSettings(bucket_bytes, 20.0))
    for version in (1, 2):
        report = sender.send(stream(version), version, verify)
        for engine in engines:
            assert [text.split()[0] for text in engine.said] == [*said, *(["finish"] if len(said) > 1 else [])]
            assert engine.said[-1].split()[1] == str(version)
            assert {name: tensor.tolist() for name, tensor in engine.model.items()} == {
                name: tensor.tolist() for name, tensor in weights(version)
            }
            engine.said.clear()
        assert (report.num_tensors, report.num_bytes) == (5, sum(tensor.nbytes for _, tensor in weights(1)))
        assert report.digests_compared == verify
    sender.close()


def test_the_next_bucket_is_gathered_while_the_last_is_sent() -> None:
    order: list[str] = []
    engine = GlooEngine(before_update=lambda payload: (time.sleep(0.2), order.append(f"told {payload['names'][0]}")))

    def gather() -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in weights(0):
            order.append(f"gather {name}")
            yield name, tensor

    sender_to(engine).send(WeightStream(gather), 1, verify=False)
    assert order.index("gather w3") < order.index(
        "told w0"
    )  # w0 and w1 fill the first bucket, w2 told that it was full


def test_bytes_that_change_on_the_way_are_refused() -> None:
    def spoil(payload: dict[str, Any]) -> None:
        payload["digests"][-1] = "0" * 16

    with pytest.raises(WeightDigestError, match="the bytes of 'w1' are not those that were sent"):
        sender_to(GlooEngine(before_update=spoil)).send(stream(0), 1, verify=True)


def test_an_engine_that_fails_ends_the_sync_at_once_and_says_why() -> None:
    def fail(payload: dict[str, Any]) -> None:
        raise WeightSyncFailedError("rollout server 1 of 2 died")

    started = time.monotonic()
    with pytest.raises(WeightSyncFailedError, match="rollout server 1 of 2 died"):
        sender_to(GlooEngine(before_update=fail)).send(stream(0), 1, verify=False)
    assert time.monotonic() - started < SETTINGS.timeout_s / 2  # not the time limit of the broadcast


def test_an_engine_that_leaves_the_group_breaks_the_broadcast_off() -> None:
    engine = GlooEngine()

    def leave(payload: dict[str, Any]) -> None:
        assert engine.receiver is not None
        engine.receiver.close()
        raise WeightSyncFailedError("rollout server 0 of 1 died")

    engine.before_update = leave
    with pytest.raises(WeightSyncFailedError, match="rollout server 0 of 1 died"):
        sender_to(engine).send(stream(0), 1, verify=False)


def test_an_engine_that_says_nothing_is_not_waited_for_longer_than_the_limit() -> None:
    engine = GlooEngine(before_update=lambda payload: time.sleep(3))
    sender = sender_to(engine, settings=BroadcastSettings(100, timeout_s=1.0, last_words_s=0.2))
    started = time.monotonic()
    with pytest.raises(WeightSyncFailedError, match="weight_sync_timeout_s|broke off"):
        sender.send(stream(0), 1, verify=False)
    assert time.monotonic() - started < 2.9


def test_an_engine_that_does_not_join_is_missed() -> None:
    class Absent(GlooEngine):
        def init_transfer(self, init_info: dict[str, Any]) -> None:
            time.sleep(3)

    with pytest.raises(WeightSyncFailedError, match=r"127\.0\.0\.1:\d+ \(2 ranks\): of 2 ranks \[1\] did not come"):
        sender_to(Absent(), settings=BroadcastSettings(100, timeout_s=1.0, last_words_s=0.2))


def test_an_engine_that_fails_to_join_says_why() -> None:
    class Broken(GlooEngine):
        def init_transfer(self, init_info: dict[str, Any]) -> None:
            raise WeightSyncFailedError("rollout server 0 of 1 failed in init_transfer: no route")

    with pytest.raises(WeightSyncFailedError, match="no route"):
        sender_to(Broken())


def test_other_ranks_take_part_in_gathering_and_send_nothing() -> None:
    seen: list[str] = []

    def gather() -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in weights(0):
            seen.append(name)
            yield name, tensor

    report = BroadcastSender(None, None, SETTINGS).send(WeightStream(gather), 3, verify=True)
    assert len(seen) == 5
    assert (report.num_bytes, report.digests_compared) == (0, False)


def test_a_machine_knows_its_own_address_towards_another() -> None:
    assert own_address("127.0.0.1", 80) == "127.0.0.1"
