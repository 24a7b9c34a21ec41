# SPDX-License-Identifier: Apache-2.0
"""Rollout engines in this process as the other side of a weight sync, what they sample, and what they should."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from verl.rollout.base import GenerationRequest, RolloutSpec, SamplingSettings
from verl.utils.async_loop import BackgroundLoop

TEMPERATURE = 0.7
HEADS = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
"""Sizes of a tiny Qwen2 that vLLM runs on a CPU: it wants heads of 32 or more."""


class LocalGroupClient:
    """Engines in this process as receivers of broadcasts, each told everything at the same time.

    Args:
        engines: Started engines.
        loop: On which they live.
        ranks: Processes of each engine.
    """

    def __init__(self, engines: Sequence[Any], loop: BackgroundLoop, ranks: int = 1) -> None:
        self._engines, self._loop, self._ranks = list(engines), loop, ranks
        self.before_update: Callable[[dict[str, Any]], None] = lambda payload: None
        self.num_updates = 0

    @property
    def num_receivers(self) -> int:
        return len(self._engines) * self._ranks

    def init_group(self, init_info: dict[str, Any]) -> None:
        offsets = range(1, 1 + self.num_receivers, self._ranks)
        self._all("init_transfer", [(init_info | {"rank_offset": offset},) for offset in offsets])

    def init_transfer(self, init_info: dict[str, Any]) -> None:
        self._same("init_transfer", init_info)

    def start_update(self) -> None:
        self._same("start_update")

    def update(self, payload: dict[str, Any]) -> None:
        self.num_updates += 1
        self.before_update(payload)
        self._same("update", payload)

    def finish_update(self, version: int) -> None:
        self._same("finish_update", version)

    def sync(self, payload: dict[str, Any], version: int) -> None:
        self.start_update()
        self.update(payload)
        self.finish_update(version)

    def _same(self, method: str, *args: Any) -> None:
        self._all(method, [args] * len(self._engines))

    def _all(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> None:
        async def everyone() -> None:
            calls = zip(self._engines, arguments, strict=True)
            await asyncio.gather(*(getattr(engine, method)(*args) for engine, args in calls))

        self._loop.run(everyone(), 120)


def engine_spec(model_path: Path, weight_sync: str) -> RolloutSpec:
    """Settings of an engine over a tiny model in float32."""
    return RolloutSpec(
        model_path=str(model_path),
        dtype="float32",
        max_model_len=64,
        max_num_seqs=16,
        kv_cache_bytes=1 << 26,
        weight_sync=weight_sync,
    )


def sample(engine: Any, loop: BackgroundLoop, label: str) -> list[tuple[list[int], Any]]:
    """Eight prompts with what the engine says to them; `label` keeps request ids apart."""

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


def largest_difference(model: torch.nn.Module, samples: Sequence[tuple[list[int], Any]]) -> float:
    """Largest difference in nats between the samples' log-probs and those of a transformers model."""
    worst = 0.0
    for prompt, generation in samples:
        ids = torch.tensor([prompt + generation.token_ids])
        with torch.no_grad():
            log_probs = torch.log_softmax(model(ids).logits.float() / TEMPERATURE, dim=-1)[0, len(prompt) - 1 : -1]
        expected = log_probs.gather(-1, ids[0, len(prompt) :, None])[:, 0]
        worst = max(worst, float((expected - torch.tensor(generation.log_probs)).abs().max()))
    return worst
