# SPDX-License-Identifier: Apache-2.0
"""Every PRM family served by vLLM against the same checkpoint run by plain transformers in this process.

Tiny random checkpoints in the layouts of the published ones: weights in a pickled file, tied embeddings, a head in a
file of its own, tensors under a longer prefix. One engine per case. `max_num_batched_tokens` is far below the longer
inputs, so those go through chunked prefill. (`Qwen2ForProcessRewardModel` is in test_prm_serving.py.)
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.helpers.prm_families import family_spec, save_family
from verl.rewards.prm.score_space import to_score
from verl.rewards.prm.scorer import HFScorer
from verl.rewards.prm.spec import load_adapter
from verl.rewards.prm.types import ScoreRequest, StepLogits
from verl.utils.async_loop import BackgroundLoop
from verl.workers.vllm_scorer import VLLMScorer

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

CHUNK_TOKENS = 128
BLOCK_TOKENS = 32  # the smallest a CPU takes; its default of 128 would hide the prefix cache from inputs this short
TOLERANCE = {"float32": 1e-4, "bfloat16": 8e-2}  # of the difference of two logits
MIXED = [
    ScoreRequest(
        f"r{n}",
        f"What is {n} + {n}?",
        tuple(f"Step {k} of {n}: é中 is {k * n}" + " x" * (7 * n) + "\n\n" for k in range(1 + n % 5)),
    )
    for n in range(8)
]
LONG = ScoreRequest("long", "What is 1 + 1?", tuple(f"Step {k} " + "y" * 60 + "\n\n" for k in range(12)))
WINDOWS = ScoreRequest("windows", "What is 1 + 1?", tuple(f"Step {k} " + "z" * 90 + "\n\n" for k in range(14)))


def as_pickled(folder: Path) -> None:
    """Math-Shepherd is published as pytorch_model*.bin."""
    weights = folder / "model.safetensors"
    torch.save(load_file(weights), folder / "pytorch_model.bin")
    weights.unlink()


def under_longer_prefix(folder: Path) -> None:
    """As a wrapper that keeps the language model as `pretrained_model` saves it."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file({n if n.startswith("v_head.") else f"pretrained_model.{n}": t for n, t in tensors.items()}, path)


@dataclass(frozen=True)
class Case:
    adapter: str
    dtype: str = "float32"
    rewrite: Callable[[Path], None] | None = None
    config: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        return f"{self.adapter}-{self.dtype}"


CASES = [
    Case("reasonflux_prm_1_5b"),
    Case("skywork_prm", rewrite=under_longer_prefix),
    Case("pure_prm"),
    Case("math_shepherd", rewrite=as_pickled),
    Case("math_shepherd", "bfloat16"),
    Case("rlhflow_prm", config=(("tie_word_embeddings", True),)),
    Case("implicit_prm"),
]


@dataclass
class Pair:
    """A served PRM and the same one in this process."""

    case: Case
    served: VLLMScorer
    plain: HFScorer
    loop: BackgroundLoop

    def ask(self, scorer: VLLMScorer | HFScorer, *requests: ScoreRequest) -> list[StepLogits]:
        async def all_at_once() -> list[StepLogits]:
            return await asyncio.gather(*map(scorer, requests))

        return self.loop.run(all_at_once(), 120)

    def assert_same(self, answers: list[StepLogits], expected: list[StepLogits], share: float = 1.0) -> None:
        assert [answer.logits.shape for answer in answers] == [other.logits.shape for other in expected]
        assert [answer.flags for answer in answers] == [other.flags for other in expected]
        np.testing.assert_allclose(
            verdicts(answers), verdicts(expected), atol=share * TOLERANCE[self.case.dtype], rtol=0
        )


def verdicts(answers: list[StepLogits]) -> np.ndarray:
    """Right against wrong, before any softmax: probabilities of random weights may all be near 1."""
    return np.concatenate([to_score(answer.logits, "logit_diff") for answer in answers])


@pytest.fixture(scope="module", params=CASES, ids=str)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    case: Case = request.param
    folder = save_family(case.adapter, tmp_path_factory.mktemp(case.adapter), **dict(case.config))
    if case.rewrite is not None:
        case.rewrite(folder)
    changes: dict[str, Any] = {"implicit_beta": 0.02} if case.adapter == "implicit_prm" else {}
    serving = {
        "dtype": case.dtype,
        "kv_cache_bytes": 64 << 20,
        "max_num_batched_tokens": CHUNK_TOKENS,
        "max_num_seqs": 16,
        "enforce_eager": True,
        "engine_kwargs": {"block_size": BLOCK_TOKENS},
    }
    loop = BackgroundLoop(str(case))
    made = Pair(
        case,
        VLLMScorer(family_spec(case.adapter, folder, **changes | serving)),
        HFScorer(family_spec(case.adapter, folder, **changes)),
        loop,
    )
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_LOGGING_LEVEL": "ERROR"}.items():
            patch.setenv(name, value)
        patch.setenv("OMP_NUM_THREADS", "1")
        try:
            loop.run(made.served.start(), 400)
            loop.run(made.plain.start(), 60)
            yield made
        finally:
            loop.run(made.served.close(), 60)
            loop.run(made.plain.close(), 60)
            loop.close()


def test_scores_of_eight_at_once_equal_plain_transformers(pair: Pair) -> None:
    expected = pair.ask(pair.plain, *MIXED)
    assert verdicts(expected).std() > 4 * TOLERANCE[pair.case.dtype], "or the comparison would say nothing"
    answers = pair.ask(pair.served, *MIXED)
    assert [len(answer.logits) for answer in answers] == [len(request.steps) for request in MIXED]
    pair.assert_same(answers, expected)


def test_alone_or_together(pair: Pair) -> None:
    together = pair.ask(pair.served, *MIXED)
    alone = [answer for request in MIXED for answer in pair.ask(pair.served, request)]
    pair.assert_same(alone, together, share=0.25)


def test_chunked_prefill_beside_short_inputs(pair: Pair) -> None:
    plan = load_adapter(pair.plain._spec).adapter.plan(LONG)
    assert max(len(item.token_ids) for item in plan.inputs) > 5 * CHUNK_TOKENS
    answers = pair.ask(pair.served, LONG, *MIXED)
    pair.assert_same(answers, pair.ask(pair.plain, LONG, *MIXED))


def test_over_the_context_in_windows(pair: Pair) -> None:
    answers = pair.ask(pair.served, WINDOWS)
    assert "windowed" in answers[0].flags
    pair.assert_same(answers, pair.ask(pair.plain, WINDOWS))


def test_prefixes_are_run_once_where_only_the_last_token_is_wanted(pair: Pair) -> None:
    fresh = ScoreRequest("fresh", "Another problem?", tuple(f"Step {k} " + "w" * 40 + "\n\n" for k in range(8)))
    before = pair.served.counts
    answers = pair.ask(pair.served, fresh)
    shown, cached = (pair.served.counts[name] - before[name] for name in ("tokens", "cached_tokens"))
    assert shown > 0
    if pair.case.adapter == "reasonflux_prm_1_5b":
        # K inputs, each the one before it and a step more: all but a block and the new step comes from the cache.
        assert cached > shown / 2
    else:
        assert cached == 0
    pair.assert_same(answers, pair.ask(pair.plain, fresh))
