# SPDX-License-Identifier: Apache-2.0
"""Plain transformers generation behind the rollout interface: slow, with nothing between the user and the model.

Requests that wait at the same time and sample alike are generated as one left-padded batch; a response comes back when
its batch ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from verl.rollout.base import Generation, GenerationRequest, RolloutSpec, SamplingSettings
from verl.utils.device import resolve_device
from verl.weight_sync.bundle import WeightManifest, read_bundle

_Waiting = tuple[GenerationRequest, "asyncio.Future[Generation]"]


class HFEngine:
    """One transformers model that generates.

    Example:
        >>> engine = HFEngine(RolloutSpec(model_path="Qwen/Qwen2.5-0.5B", dtype="float32", max_model_len=1024))
        >>> await engine.start()
    """

    def __init__(self, spec: RolloutSpec) -> None:
        """Remember the settings; nothing is loaded yet.

        Args:
            spec: Engine settings.
        """
        self._spec = spec
        self._model: Any = None
        self._queue: asyncio.Queue[_Waiting] = asyncio.Queue()
        self._loop_task: asyncio.Task[None] | None = None
        self._idle = asyncio.Lock()
        self._policy_version = 0

    async def start(self) -> None:
        """See `RolloutEngine.start`."""
        self._device = resolve_device(self._spec.device)
        model = AutoModelForCausalLM.from_pretrained(
            self._spec.model_path,
            dtype=getattr(torch, self._spec.dtype),
            trust_remote_code=self._spec.trust_remote_code,
        )
        self._model = model.to(self._device).eval()
        # `generate` fills what a request leaves open from here: nothing may come from the model folder
        self._model.generation_config = GenerationConfig()
        torch.manual_seed(self._spec.seed)
        self._loop_task = asyncio.create_task(self._serve())

    async def generate(self, request: GenerationRequest) -> Generation:
        """See `RolloutEngine.generate`."""
        future: asyncio.Future[Generation] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((request, future))
        return await future

    async def init_transfer(self, init_info: dict[str, Any]) -> None:
        """See `RolloutEngine.init_transfer`; a shared-memory bundle needs no preparation."""

    async def start_update(self) -> None:
        """See `RolloutEngine.start_update`; holds back batches until `finish_update`."""
        await self._idle.acquire()

    async def update(self, payload: dict[str, Any]) -> None:
        """See `RolloutEngine.update`.

        Raises:
            RuntimeError: The bundle names a parameter the model does not have, or lacks one.
        """
        received = {name: tensor.to(self._device) for name, tensor in read_bundle(WeightManifest(**payload))}
        missing, unexpected = self._model.load_state_dict(received, strict=False)
        own = self._model.state_dict()
        filled = {own[name].data_ptr() for name in received if name in own}
        # a tied head has no tensor of its own and came with the embedding
        lacking = [name for name in missing if own[name].data_ptr() not in filled]
        if unexpected or lacking:
            raise RuntimeError(f"weight sync: unexpected {unexpected}, missing {lacking}")

    async def finish_update(self, version: int) -> None:
        """See `RolloutEngine.finish_update`."""
        self._policy_version = version
        self._idle.release()

    async def sleep(self) -> None:
        """See `RolloutEngine.sleep`; moves the model to the host."""
        if self._spec.enable_sleep_mode:
            self._model.to("cpu")

    async def wake(self, for_update: bool = False) -> None:
        """See `RolloutEngine.wake`."""
        self._model.to(self._device)

    async def close(self) -> None:
        """See `RolloutEngine.close`."""
        if self._loop_task is not None:
            self._loop_task.cancel()

    async def _serve(self) -> None:
        held_over: _Waiting | None = None
        while True:
            batch = [held_over or await self._queue.get()]
            held_over = None
            await asyncio.sleep(0)  # let requests of the same moment arrive
            while len(batch) < self._spec.max_num_seqs and not self._queue.empty() and held_over is None:
                waiting = self._queue.get_nowait()
                if waiting[0].sampling == batch[0][0].sampling:
                    batch.append(waiting)
                else:
                    held_over = waiting
            async with self._idle:
                await self._generate_batch(batch)

    async def _generate_batch(self, batch: Sequence[_Waiting]) -> None:
        requests = [request for request, _ in batch]
        results = await asyncio.gather(asyncio.to_thread(self._sample, requests), return_exceptions=True)
        outcome = results[0]
        for index, (_, future) in enumerate(batch):
            if future.done():  # the caller gave up
                continue
            if isinstance(outcome, BaseException):
                future.set_exception(outcome)
            else:
                future.set_result(outcome[index])

    @torch.no_grad()
    def _sample(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        sampling = requests[0].sampling
        width = max(len(request.prompt_token_ids) for request in requests)
        pad = [width - len(request.prompt_token_ids) for request in requests]
        input_ids = torch.tensor([[0] * n + request.prompt_token_ids for n, request in zip(pad, requests, strict=True)])
        attention_mask = (torch.arange(width)[None] >= torch.tensor(pad)[:, None]).long()
        with self._random_numbers(sampling.seed):
            output = self._model.generate(
                input_ids=input_ids.to(self._device),
                attention_mask=attention_mask.to(self._device),
                generation_config=generation_config(sampling),
            )
        tokens = output.sequences[:, width:].cpu()
        # `scores` are the logits after temperature: the distribution that was sampled
        log_probs = torch.stack(
            [
                torch.log_softmax(step.float(), dim=-1).gather(-1, tokens[:, i, None].to(step.device)).squeeze(-1)
                for i, step in enumerate(output.scores)
            ],
            dim=1,
        ).cpu()
        return [
            self._cut(request, tokens[row].tolist(), log_probs[row].tolist(), sampling)
            for row, request in enumerate(requests)
        ]

    @contextmanager
    def _random_numbers(self, seed: int | None) -> Iterator[None]:
        """Draw from a stream of their own for requests with a seed, else from the engine's."""
        if seed is None:
            yield
            return
        with torch.random.fork_rng([self._device] if self._device.type == "cuda" else []):
            torch.manual_seed(seed)
            yield

    def _cut(
        self, request: GenerationRequest, tokens: list[int], log_probs: list[float], sampling: SamplingSettings
    ) -> Generation:
        stops = () if sampling.ignore_eos else sampling.stop_token_ids
        end = next((i + 1 for i, token in enumerate(tokens) if token in stops), None)
        length = len(tokens) if end is None else end
        return Generation(
            request_id=request.request_id,
            token_ids=tokens[:length],
            log_probs=log_probs[:length],
            finish_reason="length" if end is None else "stop",
            policy_version=self._policy_version,
        )


def generation_config(sampling: SamplingSettings) -> GenerationConfig:
    """Translate one batch's sampling settings.

    Args:
        sampling: How to sample.

    Returns:
        transformers' settings, complete: nothing is taken from the model folder's own defaults.
    """
    stops = [] if sampling.ignore_eos else list(sampling.stop_token_ids)
    greedy = sampling.temperature == 0
    choice = (
        {}
        if greedy
        else {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": max(sampling.top_k, 0),
        }
    )
    return GenerationConfig(
        do_sample=not greedy,
        max_new_tokens=sampling.max_new_tokens,
        eos_token_id=stops or None,
        pad_token_id=stops[0] if stops else 0,
        return_dict_in_generate=True,
        output_scores=True,
        **choice,
    )
