# SPDX-License-Identifier: Apache-2.0
"""A rollout engine as a Ray actor. Groups come in, responses stream out the moment each one is complete."""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from transformers import GenerationConfig

from verl.rollout.base import GenerationRequest, RolloutEngine, RolloutSpec, SamplingSettings
from verl.rollout.to_batch import RolloutOutput
from verl.utils.errors import UserError
from verl.utils.tokenizer import decode_with_starts, load_tokenizer

logger = logging.getLogger(__name__)

ROLLOUT_ENGINES = {
    "vllm": "verl.rollout.vllm_engine:VLLMEngine",
    "hf": "verl.rollout.hf_engine:HFEngine",
    "sglang": "verl.rollout.sglang_engine:SGLangEngine",
}
"""Dotted names, so that an engine's packages are loaded only where it is used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRequest:
    """One prompt to be answered several times.

    Attributes:
        uid: Identity of the group.
        prompt_token_ids: The prompt, chat template applied.
        num_responses: G.
        sampling: How to sample each response.
        expected_tokens: Length that the data expect of a response, unit: tokens; None if they say nothing. It decides
            on the order of submission alone.
    """

    uid: str
    prompt_token_ids: list[int]
    num_responses: int
    sampling: SamplingSettings
    expected_tokens: float | None = None


class RolloutServer:
    """One engine with its tokenizer.

    Example:
        >>> server = ray.remote(RolloutServer).remote("vllm", spec, tokenizer_path)
        >>> ray.get(server.start.remote())
        >>> async for reference in server.generate_group.options(num_returns="streaming").remote(request):
        ...     output = await reference
    """

    def __init__(self, engine_name: str, spec: RolloutSpec, tokenizer_path: str) -> None:
        """Create the engine object; nothing is loaded yet.

        Args:
            engine_name: A key of `ROLLOUT_ENGINES`.
            spec: Engine settings.
            tokenizer_path: Folder or hub id of the policy's tokenizer.
        """
        module, _, name = ROLLOUT_ENGINES[engine_name].partition(":")
        self._engine: RolloutEngine = getattr(importlib.import_module(module), name)(spec)
        self._tokenizer = load_tokenizer(tokenizer_path, spec.trust_remote_code)
        self._stops = stop_token_ids(spec.model_path, self._tokenizer)

    async def start(self) -> int:
        """Load the model.

        Returns:
            Process id, for the record of running processes.
        """
        await self._engine.start()
        return os.getpid()

    async def generate_group(self, request: GroupRequest) -> AsyncIterator[RolloutOutput]:
        """Sample all responses of a group.

        Args:
            request: The prompt and how often to answer it.

        Yields:
            Each response when it is complete, in completion order.
        """
        tasks = [asyncio.create_task(self._generate(request, index)) for index in range(request.num_responses)]
        try:
            for finished in asyncio.as_completed(tasks):
                yield await finished
        finally:
            for task in tasks:
                task.cancel()

    async def init_transfer(self, init_info: dict[str, Any]) -> None:
        """See `RolloutEngine.init_transfer`."""
        await self._engine.init_transfer(init_info)

    async def start_update(self) -> None:
        """See `RolloutEngine.start_update`."""
        await self._engine.start_update()

    async def update(self, payload: dict[str, Any]) -> None:
        """See `RolloutEngine.update`."""
        await self._engine.update(payload)

    async def finish_update(self, version: int) -> None:
        """See `RolloutEngine.finish_update`."""
        await self._engine.finish_update(version)

    async def sync(self, payload: dict[str, Any], version: int) -> None:
        """A whole sync in one message, where one payload is all there is: start, update, finish.

        Args:
            payload: See `RolloutEngine.update`.
            version: See `RolloutEngine.finish_update`.
        """
        await self._engine.start_update()
        await self._engine.update(payload)
        await self._engine.finish_update(version)

    async def sleep(self) -> None:
        """See `RolloutEngine.sleep`."""
        await self._engine.sleep()

    async def wake(self, for_update: bool = False) -> None:
        """See `RolloutEngine.wake`."""
        await self._engine.wake(for_update)

    async def close(self) -> None:
        """See `RolloutEngine.close`."""
        await self._engine.close()

    async def _generate(self, request: GroupRequest, index: int) -> RolloutOutput:
        generation = await self._engine.generate(
            GenerationRequest(
                request_id=f"{request.uid}-{index}",
                prompt_token_ids=request.prompt_token_ids,
                sampling=_for_response(request.sampling, index, self._stops),
            )
        )
        text, token_starts = decode_with_starts(self._tokenizer, generation.token_ids)
        return RolloutOutput(request.uid, index, generation, text, token_starts)


def stop_token_ids(model_path: str, tokenizer: Any) -> tuple[int, ...]:
    """Tokens that end a response: the tokenizer's EOS and those of the model folder's generation settings.

    Args:
        model_path: Folder or hub id of the policy.
        tokenizer: The policy's tokenizer.

    Returns:
        Token ids, sorted.

    Raises:
        UserError: There is none, so no response could ever end.
    """
    stops = {tokenizer.eos_token_id} - {None}
    try:
        configured = GenerationConfig.from_pretrained(model_path).eos_token_id
    except OSError:
        configured = None  # the model folder has no generation_config.json; the tokenizer's EOS is enough
    stops |= set(configured if isinstance(configured, list) else [configured]) - {None}
    if not stops:
        raise UserError.for_key(
            "actor_rollout_ref.model.path",
            model_path,
            "neither tokenizer nor generation_config.json names an EOS token",
            "Set eos_token in tokenizer_config.json",
        )
    return tuple(sorted(int(token) for token in stops))


def _for_response(sampling: SamplingSettings, index: int, stops: tuple[int, ...]) -> SamplingSettings:
    """The group's settings with the server's stop tokens and, when a seed is given, one seed per response."""
    return SamplingSettings(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        max_new_tokens=sampling.max_new_tokens,
        seed=None if sampling.seed is None else sampling.seed + index,
        stop_token_ids=sampling.stop_token_ids or stops,
        ignore_eos=sampling.ignore_eos,
    )
