# SPDX-License-Identifier: Apache-2.0
"""What every rollout engine must do: sample from the model it has, say the log-probs, and run the weights it is sent.

Also where the output head shares the input embedding, which vLLM packs a second time on a CPU.
"""

from __future__ import annotations

import asyncio
import importlib
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.tiny_models import tiny_model
from verl.rollout.base import GenerationRequest, RolloutSpec, SamplingSettings
from verl.utils.async_loop import BackgroundLoop
from verl.weight_sync.base import WeightStream
from verl.weight_sync.shared_memory import SharedMemorySender
from verl.workers.rollout_server import ROLLOUT_ENGINES

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

TEMPERATURE = 0.7
HEADS = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}  # vLLM on CPU wants heads of 32 or more


class LocalClient:
    """An engine in this process as the other side of a sync."""

    def __init__(self, engine: Any, loop: BackgroundLoop) -> None:
        self._engine, self._loop = engine, loop
        self.spoil: Path | None = None

    def init_transfer(self, init_info: dict[str, Any]) -> None:
        self._loop.run(self._engine.init_transfer(init_info), 60)

    def start_update(self) -> None:
        self._loop.run(self._engine.start_update(), 60)

    def update(self, payload: dict[str, Any]) -> None:
        if self.spoil is not None:
            raw = bytearray(Path(payload["path"]).read_bytes())
            raw[payload["offsets"][0]] ^= 1
            Path(payload["path"]).write_bytes(bytes(raw))
        self._loop.run(self._engine.update(payload), 60)

    def finish_update(self, version: int) -> None:
        self._loop.run(self._engine.finish_update(version), 60)

    def sync(self, payload: dict[str, Any], version: int) -> None:
        self.start_update()
        self.update(payload)
        self.finish_update(version)


def sample(engine: Any, loop: BackgroundLoop, label: str) -> list[tuple[list[int], Any]]:
    async def all_at_once() -> list[Any]:
        requests = [
            GenerationRequest(
                request_id=f"{label}{i}",
                prompt_token_ids=[5 + i, 6, 7],
                sampling=SamplingSettings(max_new_tokens=16, temperature=TEMPERATURE, stop_token_ids=(1,)),
            )
            for i in range(8)
        ]
        return await asyncio.gather(*(engine.generate(request) for request in requests))

    return [([5 + i, 6, 7], generation) for i, generation in enumerate(loop.run(all_at_once(), 120))]


def largest_difference(model: torch.nn.Module, samples: list[tuple[list[int], Any]]) -> float:
    worst = 0.0
    for prompt, generation in samples:
        ids = torch.tensor([prompt + generation.token_ids])
        with torch.no_grad():
            log_probs = torch.log_softmax(model(ids).logits.float() / TEMPERATURE, dim=-1)[0, len(prompt) - 1 : -1]
        expected = log_probs.gather(-1, ids[0, len(prompt) :, None])[:, 0]
        worst = max(worst, float((expected - torch.tensor(generation.log_probs)).abs().max()))
    return worst


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("name", ["vllm", "hf"])
def test_an_engine_samples_from_the_weights_it_was_sent(
    name: str, tied: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    module, _, class_name = ROLLOUT_ENGINES[name].partition(":")
    first, second = tiny_model(tied, 0, **HEADS), tiny_model(tied, 1, **HEADS)
    first.save_pretrained(tmp_path)
    loop = BackgroundLoop("test")
    spec = RolloutSpec(
        model_path=str(tmp_path), dtype="float32", max_model_len=64, max_num_seqs=16, kv_cache_bytes=1 << 26
    )
    engine = getattr(importlib.import_module(module), class_name)(spec)
    try:
        loop.run(engine.start(), 300)
        assert largest_difference(first, sample(engine, loop, "before")) < 1e-4

        client = LocalClient(engine, loop)
        sender = SharedMemorySender(client, is_leader=True)
        stream = WeightStream(lambda: iter(second.named_parameters()))
        for version in (1, 2):
            report = sender.send(stream, version, verify=True)
            samples = sample(engine, loop, f"after{version}-")
            assert {generation.policy_version for _, generation in samples} == {version}
            assert largest_difference(second, samples) < 1e-4
            assert largest_difference(first, samples) > 0.1  # the two policies do differ
        assert report.num_bytes == sum(p.numel() * 4 for p in second.parameters())
        assert not list(Path("/dev/shm").glob(f"verl-weights-{os.getpid()}*"))

        client.spoil = tmp_path
        with pytest.raises(Exception, match="not those that were sent"):
            sender.send(stream, 3, verify=True)
    finally:
        loop.run(engine.close(), 60)
        loop.close()
