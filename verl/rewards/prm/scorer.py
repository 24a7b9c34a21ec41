# SPDX-License-Identifier: Apache-2.0
"""A PRM in this process, by plain transformers: the reference that served scores are compared with, and `backend=hf`.

    consumes   requests, as they come
    produces   their logits; requests that wait together go through the model together, sorted by length
    waits for  the one forward pass that runs at a time, in a thread of its own

Runs every family of PRMs; needs neither vLLM nor Ray.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from verl.rewards.prm.scoring_model import HeadedBackbone, LogRatioModel, load_scoring_model
from verl.rewards.prm.spec import LoadedAdapter, PRMSpec, load_adapter
from verl.rewards.prm.types import PRMInput, ScoreRequest, StepLogits
from verl.utils.device import release_memory

logger = logging.getLogger(__name__)

_CPU_PASS_TOKENS = 1024
"""Measured with 4M parameters on one core: passes of 256 to 2048 tokens cost the same, of 8192 tokens 40% more."""


class HFScorer:
    """One PRM on one device.

    Example:
        >>> scorer = HFScorer(PRMSpec(path="Gen-Verse/ReasonFlux-PRM-7B", device="cuda"))
        >>> await scorer.start()
        >>> (await scorer(ScoreRequest("r0", "1+1?", ("It is 2.",)))).logits
    """

    def __init__(self, spec: PRMSpec) -> None:
        """Remember the settings; nothing is loaded yet.

        Args:
            spec: The PRM and how to run it.
        """
        self._spec = spec
        self._loaded: LoadedAdapter | None = None
        self._model: HeadedBackbone | LogRatioModel | None = None
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="prm")
        self._waiting: list[_Waiting] = []
        self._drain: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Load tokenizer and model."""
        self._loaded = load_adapter(self._spec)
        logger.info("PRM adapter %s (%s), %d tokens", self._loaded.name, self._loaded.reason, self._loaded.max_tokens)
        self._model = await asyncio.get_running_loop().run_in_executor(self._executor, self._load)

    async def __call__(self, request: ScoreRequest) -> StepLogits:
        """See `ScoreSteps`."""
        assert self._loaded is not None, "start() was not awaited"
        plan = self._loaded.adapter.plan(request)
        loop = asyncio.get_running_loop()
        mine = [_Waiting(item, loop.create_future()) for item in plan.inputs]
        self._waiting += mine
        if mine and self._drain is None:
            self._drain = loop.create_task(self._run_waiting())
        return plan.gather(await asyncio.gather(*(one.rows for one in mine)))

    async def sleep(self) -> None:
        """See `StepScorer.sleep`."""
        await asyncio.get_running_loop().run_in_executor(self._executor, self._move_to, "cpu")

    async def wake(self) -> None:
        """See `StepScorer.wake`."""
        await asyncio.get_running_loop().run_in_executor(self._executor, self._move_to, self._device())

    async def close(self) -> None:
        """Free the model; whoever still waits is cancelled."""
        for one in self._waiting:
            one.rows.cancel()
        if self._drain is not None:
            await self._drain  # the forward pass that runs now
        self._executor.shutdown(wait=True, cancel_futures=True)
        self._model = None

    def _load(self) -> HeadedBackbone | LogRatioModel:
        assert self._loaded is not None, "start() was not awaited"
        spec = self._spec
        model = load_scoring_model(
            self._loaded.folder,
            self._loaded.head,
            getattr(torch, spec.dtype),
            reference_path=spec.reference_path,
            beta=spec.implicit_beta,
        )
        return model.to(self._device())

    def _device(self) -> str:
        if self._spec.device == "auto":
            return "cuda" if torch.cuda.is_available() else "cpu"
        return self._spec.device

    def _move_to(self, device: str) -> None:
        assert self._model is not None, "start() was not awaited"
        self._model.to(device)
        release_memory(torch.device(self._device()))

    async def _run_waiting(self) -> None:
        """Run batches until nobody waits; a batch takes what is there when the one before it ends."""
        await asyncio.sleep(0)  # let everything that was submitted together arrive
        try:
            while self._forget_cancelled():
                await self._run_batch(self._take_batch())
        finally:
            self._drain = None

    def _forget_cancelled(self) -> bool:
        """Drop inputs that nobody waits for any more; tells whether any are left."""
        self._waiting = [one for one in self._waiting if not one.rows.done()]
        return bool(self._waiting)

    def _take_batch(self) -> list[_Waiting]:
        """Take inputs of like length, longest first, as many as the token budget holds with their padding."""
        self._waiting.sort(key=lambda one: len(one.item.token_ids))
        batch = [self._waiting.pop()]
        width = len(batch[0].item.token_ids)
        fitting = min(self._spec.max_num_seqs, self._budget() // width)
        while self._waiting and len(batch) < fitting:
            batch.append(self._waiting.pop())
        return batch

    def _budget(self) -> int:
        """Tokens of a forward pass. On a CPU a wide one gains nothing and its activations leave the caches."""
        assert self._model is not None, "start() was not awaited"
        on_cpu = next(self._model.parameters()).device.type == "cpu"
        return min(self._spec.max_num_batched_tokens, _CPU_PASS_TOKENS if on_cpu else sys.maxsize)

    async def _run_batch(self, batch: list[_Waiting]) -> None:
        loop = asyncio.get_running_loop()
        try:
            rows = await loop.run_in_executor(self._executor, self._forward, [one.item for one in batch])
        except Exception as err:  # noqa: BLE001 - handed on to everyone who waits for this batch
            for one in batch:
                if not one.rows.done():
                    one.rows.set_exception(err)
            return
        for one, mine in zip(batch, rows, strict=True):
            if not one.rows.done():
                one.rows.set_result(mine)

    @torch.inference_mode()
    def _forward(self, inputs: Sequence[PRMInput]) -> list[np.ndarray]:
        """Run one batch, padded on the right; returns [k, 2] for each input."""
        assert self._model is not None, "start() was not awaited"
        ids = torch.zeros(len(inputs), max(len(item.token_ids) for item in inputs), dtype=torch.int64)
        for row, item in zip(ids, inputs, strict=True):
            row[: len(item.token_ids)] = torch.tensor(item.token_ids)
        counts = [len(item.score_positions) for item in inputs]
        sequences = torch.repeat_interleave(torch.arange(len(inputs)), torch.tensor(counts))
        positions = torch.from_numpy(np.concatenate([item.score_positions for item in inputs]))
        device = next(self._model.parameters()).device
        logits = self._model(ids.to(device), rows=(sequences.to(device), positions.to(device)))
        return [part.numpy() for part in logits.cpu().split(counts)]


@dataclass(frozen=True)
class _Waiting:
    item: PRMInput
    rows: asyncio.Future[np.ndarray]
