# SPDX-License-Identifier: Apache-2.0
"""What every rollout engine must do: sample from the model it has, say the log-probs, and run the weights it is sent.

One suite for all of them: the same prompts and the same weights, against transformers' own forward pass, so that the
engines agree with each other. Also where the output head shares the input embedding, which vLLM packs a second time on
a CPU. The cases of SGLang need its environment and are asked for: `bash scripts/test.sh --sglang`.
"""

from __future__ import annotations

import asyncio
import importlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.sglang import real_settings
from tests.helpers.tiny_models import tiny_model
from verl.rollout.base import Generation, GenerationRequest, RolloutSpec, SamplingSettings
from verl.utils.async_loop import BackgroundLoop
from verl.weight_sync.base import WeightStream
from verl.weight_sync.shared_memory import SharedMemorySender
from verl.workers.rollout_server import ROLLOUT_ENGINES

pytestmark = pytest.mark.slow

MARKS = {"hf": (), "vllm": (pytest.mark.vllm,), "sglang": (pytest.mark.sglang, pytest.mark.opt_in)}
HEADS = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}  # vLLM on CPU wants heads of 32 or more
TOLERANCE = 1e-4  # nats, float32
MAX_NUM_SEQS = 16
PROMPTS = [[5 + i, 6, 7, *range(20, 20 + i)] for i in range(8)]
Samples = list[tuple[list[int], Generation]]


class LocalClient:
    """An engine in this process as the other side of a sync; `spoils` changes a byte on the way."""

    spoils = False

    def __init__(self, engine: Any, loop: BackgroundLoop) -> None:
        self._engine, self._loop = engine, loop

    def init_transfer(self, init_info: dict[str, Any]) -> None:
        self._loop.run(self._engine.init_transfer(init_info), 60)

    def start_update(self) -> None:
        self._loop.run(self._engine.start_update(), 60)

    def update(self, payload: dict[str, Any]) -> None:
        if self.spoils:
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


@dataclass
class Running:
    """A started engine, the model it runs now, and the one it will be sent."""

    engine: Any
    loop: BackgroundLoop
    model: torch.nn.Module
    other: torch.nn.Module
    version: int = 0
    serial: int = 0

    def sample(self, prompts: list[list[int]], **sampling: Any) -> Samples:
        """Answer all prompts at once."""
        settings = SamplingSettings(**({"max_new_tokens": 16, "temperature": 0.7, "stop_token_ids": (1,)} | sampling))
        self.serial += 1
        requests = [
            GenerationRequest(request_id=f"{self.serial}-{place}", prompt_token_ids=prompt, sampling=settings)
            for place, prompt in enumerate(prompts)
        ]

        async def all_at_once() -> list[Generation]:
            return await asyncio.gather(*(self.engine.generate(request) for request in requests))

        answers = self.loop.run(all_at_once(), 120)
        assert [answer.request_id for answer in answers] == [request.request_id for request in requests]
        return list(zip(prompts, answers, strict=True))


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((name, tied), marks=MARKS[name], id=f"{name}-{'tied' if tied else 'untied'}")
        for name in ("hf", "vllm", "sglang")
        for tied in (True, False)
    ],
)
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    name, tied = request.param
    folder = tmp_path_factory.mktemp("model")
    first, second = tiny_model(tied, 0, **HEADS), tiny_model(tied, 1, **HEADS)
    first.save_pretrained(folder)
    module, _, class_name = ROLLOUT_ENGINES[name].partition(":")
    spec = RolloutSpec(
        model_path=str(folder),
        dtype="float32",
        max_model_len=64,
        max_num_seqs=MAX_NUM_SEQS,
        kv_cache_bytes=1 << 26,
        server=real_settings() if name == "sglang" else None,
    )
    loop = BackgroundLoop("test")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        patch.setenv("OMP_NUM_THREADS", "1")
        engine = getattr(importlib.import_module(module), class_name)(spec)
        try:
            loop.run(engine.start(), 300)
            yield Running(engine, loop, first, second)
        finally:
            loop.run(engine.close(), 60)
            loop.close()


def distributions(model: torch.nn.Module, prompt: list[int], answer: list[int], temperature: float) -> torch.Tensor:
    """[T, vocabulary] log-probs of every token that could have stood at each place of the answer."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + answer])).logits[0].float()
    return torch.log_softmax(logits / (temperature or 1.0), dim=-1)[len(prompt) - 1 : -1]


def largest_difference(model: torch.nn.Module, samples: Samples, temperature: float = 0.7) -> float:
    """Largest difference between the engine's log-probs and those of a forward pass, nats."""
    worst = 0.0
    for prompt, answer in samples:
        assert len(answer.token_ids) == len(answer.log_probs) > 0
        rows = distributions(model, prompt, answer.token_ids, temperature)
        expected = rows.gather(-1, torch.tensor(answer.token_ids)[:, None])[:, 0]
        worst = max(worst, float((expected - torch.tensor(answer.log_probs)).abs().max()))
    return worst


def greedy(model: torch.nn.Module, prompt: list[int], stops: tuple[int, ...], length: int) -> tuple[list[int], str]:
    """Greedy decoding without any cache: token ids and why it ends."""
    ids = list(prompt)
    for _ in range(length):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] in stops:
            return ids[len(prompt) :], "stop"
    return ids[len(prompt) :], "length"


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
def test_log_probs_are_those_of_the_sampled_distribution(running: Running, temperature: float) -> None:
    samples = running.sample(PROMPTS, temperature=temperature)
    assert largest_difference(running.model, samples, temperature) < TOLERANCE
    assert largest_difference(running.model, samples, temperature * 2) > 0.1  # the temperature does matter


def test_greedy_tokens_and_finish_reasons(running: Running) -> None:
    # a token in the middle of one greedy answer as stop token: some answers stop, some are cut
    stop = greedy(running.model, PROMPTS[0], (), 12)[0][4]
    expected = [greedy(running.model, prompt, (stop,), 12) for prompt in PROMPTS]
    assert {reason for _, reason in expected} == {"stop", "length"}
    samples = running.sample(PROMPTS, temperature=0.0, max_new_tokens=12, stop_token_ids=(stop,))
    assert [(answer.token_ids, answer.finish_reason) for _, answer in samples] == expected
    assert largest_difference(running.model, samples, 0.0) < TOLERANCE

    beyond = running.sample(PROMPTS, temperature=0.0, max_new_tokens=12, stop_token_ids=(stop,), ignore_eos=True)
    assert [answer.token_ids for _, answer in beyond] == [greedy(running.model, p, (), 12)[0] for p in PROMPTS]
    assert {answer.finish_reason for _, answer in beyond} == {"length"}


def test_top_k_and_top_p_cut_the_distribution(running: Running) -> None:
    for prompt, answer in running.sample(PROMPTS, temperature=2.0, top_k=2):
        rows = distributions(running.model, prompt, answer.token_ids, 2.0)
        kept = rows.topk(2, dim=-1).indices
        assert all(token in row for token, row in zip(answer.token_ids, kept.tolist(), strict=True))
    for prompt, answer in running.sample(PROMPTS, temperature=2.0, top_p=0.5):
        rows = distributions(running.model, prompt, answer.token_ids, 2.0).exp()
        for token, row in zip(answer.token_ids, rows, strict=True):
            likelier = float(row[row > row[token]].sum())
            assert likelier < 0.5 + 1e-3  # a kept token is one with less than top_p before it
    free = [token for _, answer in running.sample(PROMPTS, temperature=2.0) for token in answer.token_ids]
    cut = [token for _, answer in running.sample(PROMPTS, temperature=2.0, top_k=2) for token in answer.token_ids]
    assert len(set(free)) > len(set(cut))


def test_many_requests_at_once_each_get_their_own_answer(running: Running) -> None:
    prompts = [[2 + place % 50, 3 + place // 50, 4] for place in range(10 * MAX_NUM_SEQS)]
    samples = running.sample(prompts, temperature=1.0, max_new_tokens=4)
    assert largest_difference(running.model, samples, 1.0) < TOLERANCE
    assert len({tuple(answer.token_ids) for _, answer in samples}) > MAX_NUM_SEQS


def test_it_runs_the_weights_it_was_sent(running: Running) -> None:
    before, after = running.model, running.other
    sender = SharedMemorySender(LocalClient(running.engine, running.loop), is_leader=True)
    stream = WeightStream(lambda: iter(after.named_parameters()))
    for version in (1, 2):
        report = sender.send(stream, version, verify=True)
        running.model, running.version = after, version
        samples = running.sample(PROMPTS)
        assert {answer.policy_version for _, answer in samples} == {version}
        assert largest_difference(after, samples) < TOLERANCE
        assert largest_difference(before, samples) > 0.1  # the two policies do differ
    assert report.num_bytes == sum(p.numel() * 4 for p in after.parameters())
    assert not list(Path("/dev/shm").glob(f"verl-weights-{os.getpid()}*"))
    expected = [greedy(after, prompt, (1,), 8)[0] for prompt in PROMPTS]
    assert [answer.token_ids for _, answer in running.sample(PROMPTS, temperature=0.0, max_new_tokens=8)] == expected


def test_spoiled_bytes_are_refused(running: Running) -> None:  # the last one: the engine is in the middle of an update
    client = LocalClient(running.engine, running.loop)
    sender = SharedMemorySender(client, is_leader=True)
    client.spoils = True
    with pytest.raises(Exception, match="not those that were sent"):
        sender.send(WeightStream(lambda: iter(running.other.named_parameters())), 3, verify=True)
