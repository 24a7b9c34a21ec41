# SPDX-License-Identifier: Apache-2.0
"""What vLLM is told at its start. No engine is started here."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace

import pytest

from verl.rollout.base import RolloutSpec

pytestmark = pytest.mark.vllm


@pytest.mark.parametrize(("device", "ranks", "expected"), [("cuda", 2, "mp"), ("cuda", 1, None), ("cpu", 2, "mp")])
def test_no_rank_of_an_engine_is_an_actor_of_its_own(
    device: str, ranks: int, expected: str | None, tmp_path: Path
) -> None:
    """In an actor of a placement group, which ours are, vLLM's own choice for several ranks is Ray."""
    engine = pytest.importorskip("verl.rollout.vllm_engine")
    spec = RolloutSpec(
        model_path=str(tmp_path), dtype="bfloat16", max_model_len=8, device=device, tensor_parallel_size=ranks
    )
    assert engine.engine_args(spec).distributed_executor_backend == expected


def test_a_question_to_an_engine_that_is_gone_ends() -> None:
    engine = pytest.importorskip("verl.rollout.vllm_engine")
    vllm = SimpleNamespace(errored=False)

    async def for_ever() -> None:
        vllm.errored = True
        await asyncio.Event().wait()

    async def answer() -> int:
        return 3

    assert asyncio.run(engine.while_alive(vllm, answer())) == 3
    with pytest.raises(RuntimeError, match="engine process is gone"):
        asyncio.run(asyncio.wait_for(engine.while_alive(vllm, for_ever()), 10))
