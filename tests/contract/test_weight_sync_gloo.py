# SPDX-License-Identifier: Apache-2.0
"""Weights broadcast over gloo into real vLLM engines: all of them run the trainer's weights, also one that is split
over two processes (tensor parallel), and a flipped bit is refused.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.tiny_models import tiny_model
from tests.helpers.weight_sync import HEADS, LocalGroupClient, engine_spec, largest_difference, sample
from verl.rollout.vllm_engine import VLLMEngine
from verl.utils.async_loop import BackgroundLoop
from verl.weight_sync.base import WeightStream
from verl.weight_sync.broadcast import BroadcastSender, BroadcastSettings
from verl.weight_sync.gloo_group import GlooDoor

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

BUCKET_BYTES = 40_000  # the tiny models have 160 kB: several buckets, and layers that lie in two of them


@pytest.mark.parametrize(
    ("tied", "num_engines", "ranks"), [(True, 2, 1), (False, 1, 2)], ids=["tied", "untied-tensor-parallel"]
)
def test_engines_sample_from_the_weights_that_were_broadcast(
    tied: bool, num_engines: int, ranks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    shape = HEADS | {"num_key_value_heads": ranks, "intermediate_size": 64}
    start, *sent = (tiny_model(tied, seed, **shape) for seed in (0, 1, 2))
    start.save_pretrained(tmp_path)
    loop = BackgroundLoop("test")
    spec = replace(engine_spec(tmp_path, "gloo"), tensor_parallel_size=ranks)
    engines = [VLLMEngine(spec) for _ in range(num_engines)]
    try:
        _all(loop, engines, "start")
        client = LocalGroupClient(engines, loop, ranks)
        sender = BroadcastSender(client, GlooDoor("127.0.0.1", 60.0), BroadcastSettings(BUCKET_BYTES, 60.0))
        for version, model in enumerate(sent, start=1):
            stream = WeightStream(lambda model=model: iter(model.named_parameters()))
            report = sender.send(stream, version, verify=version == 1)
            assert report.digests_compared == (version == 1)
            assert report.num_bytes == sum(p.numel() * 4 for p in model.parameters())
            for number, engine in enumerate(engines):
                samples = sample(engine, loop, f"{version}-{number}-")
                assert {generation.policy_version for _, generation in samples} == {version}
                assert largest_difference(model, samples) < 1e-4
                assert largest_difference(start, samples) > 0.1  # the policies do differ
        assert client.num_updates >= 2 * 3

        client.before_update = _flip
        with pytest.raises(Exception, match=r"the bytes of 'model\.embed_tokens\.weight' are not those that were sent"):
            sender.send(stream, 3, verify=True)
    finally:
        _all(loop, engines, "close")
        loop.close()


def _flip(payload: dict[str, Any]) -> None:
    """What a bit that flips on the way does to the comparison, seen from its other side."""
    digests = payload["digests"]
    digests[0] = f"{int(digests[0], 16) ^ 1:016x}"


def _all(loop: BackgroundLoop, engines: list[VLLMEngine], method: str) -> None:
    async def everyone() -> None:
        await asyncio.gather(*(getattr(engine, method)() for engine in engines))

    loop.run(everyone(), 300)
