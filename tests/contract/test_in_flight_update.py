# SPDX-License-Identifier: Apache-2.0
"""Weights that change while an engine is in the middle of responses: frozen ones go on with the new policy, token by
token as it would continue them; their log-probs say, for every token, the policy that sampled it. The case of SGLang is
asked for: `bash scripts/test.sh --sglang`.
"""

from __future__ import annotations

import asyncio
import importlib
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.contract.test_rollout_engines import MARKS
from tests.helpers.sglang import real_settings
from tests.helpers.tiny_models import tiny_model
from verl.rollout.base import Generation, GenerationRequest, RolloutSpec, SamplingSettings
from verl.weight_sync.bundle import bundle_directory, write_bundle
from verl.workers.rollout_server import ROLLOUT_ENGINES

pytestmark = pytest.mark.slow

# vLLM on CPU wants heads of 32 or more
SHAPE = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 512}
NUM_REQUESTS, NUM_TOKENS, TOKENS_BEFORE = 6, 400, 40


def log_probs(model: torch.nn.Module, prompt: list[int], generation: Generation) -> torch.Tensor:
    """[T] of the response's tokens under a model."""
    ids = torch.tensor([prompt + generation.token_ids])
    with torch.no_grad():
        rows = torch.log_softmax(model(ids).logits.float(), dim=-1)[0, len(prompt) - 1 : -1]
    return rows.gather(-1, ids[0, len(prompt) :, None])[:, 0]


async def update_while_sampling(engine: Any, weights: dict[str, Any]) -> list[tuple[list[int], Generation]]:
    """Sample, change the weights on the way, and ask for two more responses while they change."""

    def start(number: int, num_tokens: int = NUM_TOKENS) -> asyncio.Task[Generation]:
        sampling = SamplingSettings(max_new_tokens=num_tokens, ignore_eos=True)
        request = GenerationRequest(request_id=f"r{number}", prompt_token_ids=[5 + number, 6, 7], sampling=sampling)
        return asyncio.create_task(engine.generate(request))

    tasks = [start(number) for number in range(NUM_REQUESTS)]
    await start(NUM_REQUESTS, TOKENS_BEFORE)  # a clock: the others have about as many tokens when it ends
    await engine.start_update()
    tasks += [start(NUM_REQUESTS + number) for number in range(2)]
    await asyncio.sleep(0.05)
    assert not any(task.done() for task in tasks)
    await engine.update(weights)
    await engine.finish_update(1)
    return [([5 + number, 6, 7], await task) for number, task in enumerate(tasks)]


@pytest.mark.parametrize("name", [pytest.param(name, marks=marks) for name, marks in MARKS.items() if name != "hf"])
def test_frozen_responses_go_on_with_the_new_weights(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    module, _, class_name = ROLLOUT_ENGINES[name].partition(":")
    first, second = tiny_model(True, 0, **SHAPE), tiny_model(True, 1, **SHAPE)
    first.save_pretrained(tmp_path)
    spec = RolloutSpec(
        model_path=str(tmp_path),
        dtype="float32",
        max_model_len=512,
        max_num_seqs=16,
        kv_cache_bytes=1 << 27,
        in_flight_update="keep",
        server=real_settings() if name == "sglang" else None,
    )

    async def run() -> list[tuple[list[int], Generation]]:
        engine = getattr(importlib.import_module(module), class_name)(spec)
        bundle = bundle_directory() / f"verl-test-{os.getpid()}.bin"
        try:
            await engine.start()
            await engine.init_transfer({})
            manifest, _ = write_bundle(second.named_parameters(), bundle, with_digests=True)
            return await asyncio.wait_for(update_while_sampling(engine, manifest.to_dict()), 120)
        finally:
            bundle.unlink(missing_ok=True)
            await engine.close()

    for number, (prompt, generation) in enumerate(asyncio.run(run())):
        assert len(generation.token_ids) == len(generation.log_probs) == NUM_TOKENS
        said = torch.tensor(generation.log_probs)
        old, new = log_probs(first, prompt, generation), log_probs(second, prompt, generation)
        by_old, by_new = (said - old).abs() < 1e-3, (said - new).abs() < 1e-3
        num_old = int(by_old.long().cumprod(0).sum())
        assert by_new[num_old:].all()  # not one token on stale keys and values
        assert by_old[num_old:].float().mean() < 0.2  # the two policies do differ
        if number < NUM_REQUESTS:
            assert TOKENS_BEFORE - 5 <= num_old < NUM_TOKENS / 2
            assert generation.policy_version == 0  # of the first token
        else:
            assert by_new.all() and generation.policy_version == 1
