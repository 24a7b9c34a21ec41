# SPDX-License-Identifier: Apache-2.0
"""The programs of Application/ with real replicas on Ray, and with candidates sampled by a real engine."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest
import ray

from recipe.miniature.models import CONTEXT_TOKENS, build_policy
from recipe.miniature.tokenizer import build_tokenizer
from tests.helpers.prm import save_tiny_prm
from tests.helpers.programs import Program, read_jsonl, write_jsonl
from verl.rewards.prm.dispatch import NoReplicaError
from verl.rewards.prm.spec import PRMSpec
from verl.rewards.prm.types import ScoreRequest
from verl.utils.errors import UserError
from verl.workers.prm_pool import PoolSettings, PRMPool

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
REQUESTS = [ScoreRequest(f"r{n}", f"{n}?", ("one\n\n", f"two {n}")) for n in range(6)]


@pytest.fixture(scope="module")
def prm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_prm(tmp_path_factory.mktemp("prm"))


def test_several_workers_write_what_one_does(
    ray_cluster: str, prm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also rows that cannot be scored keep their reason on the way through Ray."""
    rows = [{"id": n, "problem": f"{n}?", "response": "\n\n".join(["step"] * (1 + n % 5))} for n in range(40)]
    rows[7]["response"], rows[8]["problem"] = "", "long " * 400
    source = write_jsonl(tmp_path / "in.jsonl", rows)
    score = Program("score", capsys)
    options = ("--input", source, "--prm", prm, "--device", "cpu", "--self-test", "off", "--batch-rows", 16)
    one = score(*options, "--output", tmp_path / "one.jsonl")
    two = score(*options, "--output", tmp_path / "two.jsonl", "--workers", 2)
    assert (one.code, two.code) == (0, 0), two.err
    assert json.loads((tmp_path / "two.report.json").read_text())["workers"] == 2
    assert ray.is_initialized(), "a Ray that was there before is left running"
    for alone, spread in zip(read_jsonl(tmp_path / "one.jsonl"), read_jsonl(tmp_path / "two.jsonl"), strict=True):
        assert (alone["id"], alone["prm_error"]) == (spread["id"], spread["prm_error"])
        assert np.allclose(alone["step_scores"], spread["step_scores"], atol=1e-5)
    failed = [row["id"] for row in read_jsonl(tmp_path / "two.jsonl") if row["prm_error"]]
    assert failed == [7, 8]


def test_pool_goes_on_without_a_dead_replica_and_ends_without_any(ray_cluster: str, prm: Path) -> None:
    async def run() -> tuple[int, int]:
        pool = PRMPool(
            PRMSpec(path=str(prm), dtype="float32", device="cpu"), PoolSettings("hf", 2, environment=ENVIRONMENT)
        )
        await pool.start()
        before = await asyncio.gather(*map(pool, REQUESTS))
        first, second = pool.servers
        ray.kill(first)
        after = await asyncio.gather(*map(pool, REQUESTS))
        for old, new in zip(before, after, strict=True):
            assert np.allclose(old.logits, new.logits, atol=1e-5)
        alive = pool.counts["alive"]
        ray.kill(second)
        with pytest.raises(NoReplicaError):
            await pool(REQUESTS[0])
        left = pool.counts["alive"]
        await pool.close()
        return alive, left

    assert asyncio.run(run()) == (1, 0)


def test_pool_that_cannot_load_says_why(ray_cluster: str, tmp_path: Path) -> None:
    """The user's mistake comes through Ray as itself, without a remote traceback."""
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}))

    async def run() -> tuple[object, ...]:
        pool = PRMPool(PRMSpec(path=str(tmp_path), device="cpu"), PoolSettings("hf", 1, environment=ENVIRONMENT))
        with pytest.raises(UserError) as refused:
            await pool.start()
        assert "Traceback" not in str(refused.value)
        await pool.close()
        return pool.servers

    assert asyncio.run(run()) == ()


def test_candidates_sampled_by_an_engine(
    ray_cluster: str,
    prm: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", ray_cluster)
    policy = tmp_path / "policy"
    build_policy(0).save_pretrained(policy)
    build_tokenizer(CONTEXT_TOKENS).save_pretrained(policy)
    rows = [{"prompt": text, "ground_truth": "3", "data_source": "math_dapo"} for text in ("1+2", "3+4+5", "6")]
    prompts = write_jsonl(tmp_path / "prompts of mine.jsonl", rows)
    best_of_n = Program("best_of_n", capsys)
    arguments = ["--prompts", prompts, "--policy", policy, "--samples", 4, "--output", tmp_path / "out"]
    arguments += ["--prm", prm, "--device", "cpu", "--self-test", "off", "--generate", "rollout.name=hf"]
    arguments += ["data.max_prompt_length=32", "data.max_response_length=12", "trainer.device=cpu"]
    ended = best_of_n(*arguments)
    assert ended.code == 0, ended.err
    found = json.loads((tmp_path / "out/results.json").read_text())
    assert (found["problems"], found["candidates"], found["n"]) == (3, 4, [1, 2, 4])
    candidates = tmp_path / "out/candidates.jsonl"
    assert [len(row["responses"]) for row in read_jsonl(candidates)] == [4, 4, 4]
    written = candidates.stat().st_mtime_ns
    assert best_of_n(*arguments).code == 0
    assert candidates.stat().st_mtime_ns == written, "the same command does not sample again"
    other = best_of_n(*[2 if each == 4 else each for each in arguments])
    assert other.code == 2
    assert "sampled otherwise" in other.err
    refused = best_of_n(*arguments, "n_nonsense=1", "--overwrite")
    assert refused.code == 2
    assert "no candidates were sampled" in refused.err
