# SPDX-License-Identifier: Apache-2.0
"""A PRM served by vLLM pooling in a real Ray actor against a plain float32 forward, row by row; and losing a replica.

One engine per dtype for the whole file. `max_num_batched_tokens` is far below the longer inputs, so those go through
chunked prefill.
"""

from __future__ import annotations

import asyncio
import json

import numpy as np
import pytest
import ray
import torch
from ray.exceptions import RayActorError

from tests.helpers.prm import save_tiny_prm
from verl.rewards.prm.dispatch import Dispatcher, DispatchSettings
from verl.rewards.prm.model import load_prm
from verl.rewards.prm.score_space import to_score
from verl.rewards.prm.selftest import PRMSelfTestError, self_test
from verl.rewards.prm.spec import PRMSpec, load_adapter
from verl.rewards.prm.types import PRMInputError, ScoreRequest
from verl.workers.process_reward import ProcessRewardServer

pytestmark = [pytest.mark.ray, pytest.mark.slow]

CHUNK_TOKENS = 128
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
MIXED = [
    ScoreRequest(
        f"r{n}",
        f"What is {n} + {n}?",
        tuple(f"step {k} of {n}: é中🙂 " + "x" * (11 * n) + "\n\n" for k in range(1 + n % 5)),
    )
    for n in range(8)
]
LONG = ScoreRequest("long", "What is 1 + 1?", tuple(f"step {k} " + "y" * 60 + "\n\n" for k in range(12)))


class RemoteScorer:
    def __init__(self, server) -> None:
        self.server = server

    async def __call__(self, request: ScoreRequest):
        return await self.server.score.remote(request)


def start_server(backend: str, spec: PRMSpec):
    server = (
        ray.remote(ProcessRewardServer)
        .options(num_cpus=1, max_concurrency=64, runtime_env={"env_vars": ENVIRONMENT})
        .remote(backend, spec)
    )
    ray.get(server.start.remote(), timeout=300)
    return server


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(save_tiny_prm(tmp_path_factory.mktemp("prm")))


@pytest.fixture(scope="module")
def reference(folder):
    """Scores by one unpadded float32 forward per input, the head on every token."""
    model = load_prm(folder, torch.float32)
    adapter = load_adapter(PRMSpec(path=folder)).adapter

    @torch.no_grad()
    def scores(request: ScoreRequest) -> np.ndarray:
        rows = [
            model(torch.tensor([item.token_ids]))[0].numpy()[item.score_positions]
            for item in adapter.plan(request).inputs
        ]
        return to_score(np.concatenate(rows), "prob")

    return scores


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def served(request, ray_cluster, folder):
    spec = PRMSpec(
        path=folder,
        dtype=request.param,
        kv_cache_bytes=64 << 20,
        max_num_batched_tokens=CHUNK_TOKENS,
        max_num_seqs=16,
        enforce_eager=True,
    )
    server = start_server("vllm", spec)
    yield server, TOLERANCE[request.param]
    ray.get(server.close.remote(), timeout=60)
    ray.kill(server)


@pytest.mark.vllm
class TestServed:
    def test_scores_equal_a_plain_float32_forward(self, served, reference):
        server, tolerance = served
        answers = ray.get([server.score.remote(request) for request in MIXED], timeout=120)
        every = np.concatenate([to_score(answer.logits, "prob") for answer in answers])
        expected = np.concatenate([reference(request) for request in MIXED])
        assert [len(answer.logits) for answer in answers] == [len(request.steps) for request in MIXED]
        assert expected.std() > 4 * tolerance, "the tiny PRM tells steps apart, or the comparison would say nothing"
        np.testing.assert_allclose(every, expected, atol=tolerance, rtol=0)

    def test_alone_or_in_a_batch_of_eight(self, served):
        server, tolerance = served
        together = ray.get([server.score.remote(request) for request in MIXED], timeout=120)
        alone = [ray.get(server.score.remote(request), timeout=120) for request in MIXED]
        for one, other in zip(together, alone, strict=True):
            np.testing.assert_allclose(
                to_score(one.logits, "prob"), to_score(other.logits, "prob"), atol=tolerance / 4, rtol=0
            )

    def test_chunked_prefill_returns_every_row(self, served, reference, folder):
        server, tolerance = served
        (item,) = load_adapter(PRMSpec(path=folder)).adapter.plan(LONG).inputs
        assert len(item.token_ids) > 5 * CHUNK_TOKENS
        answers = ray.get([server.score.remote(LONG), *(server.score.remote(r) for r in MIXED)], timeout=120)
        np.testing.assert_allclose(to_score(answers[0].logits, "prob"), reference(LONG), atol=tolerance, rtol=0)

    def test_the_same_text_twice_is_scored_twice(self, served):
        """A prefix cache that was read would swallow the rows of the cached tokens."""
        server, tolerance = served
        first, second = ray.get([server.score.remote(LONG), server.score.remote(LONG)], timeout=120)
        third = ray.get(server.score.remote(LONG), timeout=120)
        for other in (second, third):
            assert other.logits.shape == (12, 2)
            np.testing.assert_allclose(
                to_score(first.logits, "prob"), to_score(other.logits, "prob"), atol=tolerance / 4, rtol=0
            )

    def test_over_the_context_in_windows(self, served, reference):
        server, tolerance = served
        request = ScoreRequest("windows", "What is 1 + 1?", tuple(f"step {k} " + "z" * 90 for k in range(30)))
        answer = ray.get(server.score.remote(request), timeout=120)
        assert answer.flags == ("windowed",)
        np.testing.assert_allclose(to_score(answer.logits, "prob"), reference(request), atol=tolerance, rtol=0)

    def test_literal_step_token_is_text(self, served, reference):
        server, tolerance = served
        request = ScoreRequest("literal", "Write <extra_0>.", ("I write <extra_0> twice: <extra_0>", "Done."))
        answer = ray.get(server.score.remote(request), timeout=120)
        assert answer.flags == ("escaped",) and answer.logits.shape == (2, 2)
        np.testing.assert_allclose(to_score(answer.logits, "prob"), reference(request), atol=tolerance, rtol=0)

    def test_self_test_through_the_served_prm(self, served, reference, tmp_path):
        server, _ = served
        steps = [f"the answer is {n}" for n in range(6)]
        scores = [float(reference(ScoreRequest("x", "p", (step,)))[0]) for step in steps]
        best, worst = steps[int(np.argmax(scores))], steps[int(np.argmin(scores))]
        probes = tmp_path / "prm_probes.jsonl"
        golden = {"problem": "p", "steps": [best], "scores": [max(scores)]}
        right = {"problem": "p", "right": [best], "wrong": [worst]}
        probes.write_text(json.dumps(golden) + "\n" + json.dumps(right))
        assert asyncio.run(self_test(RemoteScorer(server), str(tmp_path))) > 0
        probes.write_text(json.dumps(right | {"right": [worst], "wrong": [best]}))
        with pytest.raises(PRMSelfTestError):
            asyncio.run(self_test(RemoteScorer(server), str(tmp_path)))


def test_losing_a_replica_loses_no_response(ray_cluster, folder, reference):
    """Two in-process replicas; one is killed while it works."""
    spec = PRMSpec(path=folder, dtype="float32", device="cpu", overlong="error")
    servers = [start_server("hf", spec) for _ in range(2)]

    async def run():
        settings = DispatchSettings(max_in_flight=4, timeout_s=60, is_dead=lambda err: isinstance(err, RayActorError))
        score = Dispatcher({f"prm-{n}": RemoteScorer(server) for n, server in enumerate(servers)}, settings)
        tasks = [asyncio.create_task(score(request)) for request in MIXED * 6]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        ray.kill(servers[0])
        answers = await asyncio.gather(*tasks)
        too_long = ScoreRequest("t", "p", ("x" * 2000,))
        with pytest.raises(PRMInputError, match="exceed the PRM's context"):
            await score(too_long)
        return answers, score.counts

    answers, counts = asyncio.run(run())
    assert counts["alive"] == 1 and counts["scored"] == 48
    for request, answer in zip(MIXED * 6, answers, strict=True):
        np.testing.assert_allclose(to_score(answer.logits, "prob"), reference(request), atol=1e-4, rtol=0)
    ray.kill(servers[1])
