# SPDX-License-Identifier: Apache-2.0
"""A PRM served by vLLM pooling in this process. The only file about PRMs that loads vLLM.

Every token's logits come back (`ALL` pooling, no softmax) and the rows of the step tokens are chosen here: vLLM's
`STEP` pooling allows no chunked prefill, assumes Qwen's id of the step token, and cannot read a response's last token.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from typing import Any

import numpy as np
from vllm import PoolingParams
from vllm.config import PoolerConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.v1.engine.async_llm import AsyncLLM

from verl.rewards.prm.spec import LoadedAdapter, PRMSpec, load_adapter
from verl.rewards.prm.types import PRMInput, ScoreRequest, StepLogits

logger = logging.getLogger(__name__)


class VLLMScorer:
    """One vLLM engine with a PRM; vLLM batches whatever requests are there.

    Example:
        >>> scorer = VLLMScorer(PRMSpec(path="Gen-Verse/ReasonFlux-PRM-7B"))
        >>> await scorer.start()
        >>> (await scorer(ScoreRequest("r0", "1+1?", ("It is 2.",)))).logits
    """

    def __init__(self, spec: PRMSpec) -> None:
        """Remember the settings; nothing is loaded yet.

        Args:
            spec: The PRM and how to serve it.
        """
        self._spec = spec
        self._llm: AsyncLLM | None = None
        self._loaded: LoadedAdapter | None = None
        self._numbers = itertools.count()

    async def start(self) -> None:
        """Load tokenizer and engine."""
        self._loaded = load_adapter(self._spec)
        logger.info("PRM adapter %s (%s), %d tokens", self._loaded.name, self._loaded.reason, self._loaded.max_tokens)
        self._llm = AsyncLLM.from_engine_args(engine_args(self._spec, self._loaded))

    async def __call__(self, request: ScoreRequest) -> StepLogits:
        """See `ScoreSteps`."""
        assert self._loaded is not None, "start() was not awaited"
        plan = self._loaded.adapter.plan(request)
        rows = await asyncio.gather(*(self._run(request.request_id, item) for item in plan.inputs))
        return plan.gather(rows)

    async def close(self) -> None:
        """End the engine."""
        if self._llm is not None:
            self._llm.shutdown()
            self._llm = None

    async def _run(self, request_id: str, item: PRMInput) -> np.ndarray:
        """Return the kept rows, [k, 2] float32, of one input."""
        assert self._llm is not None, "start() was not awaited"
        # vLLM wants names unique among running requests; the same response may be asked for again after a time-out.
        name = f"{request_id}#{next(self._numbers)}"
        params = PoolingParams(task="token_classify", use_activation=False)
        stream = self._llm.encode({"prompt_token_ids": item.token_ids}, params, name)
        outputs = [output async for output in stream]
        if not outputs:
            raise RuntimeError(f"vLLM ended request {name} without output")
        logits = outputs[-1].outputs.data
        if tuple(logits.shape) != (len(item.token_ids), 2):
            raise RuntimeError(f"vLLM gave {tuple(logits.shape)} logits for {len(item.token_ids)} tokens of {name}")
        rows: np.ndarray = logits.float().cpu().numpy()[item.score_positions]
        return rows


def engine_args(spec: PRMSpec, loaded: LoadedAdapter) -> AsyncEngineArgs:
    """Translate the settings.

    Args:
        spec: The PRM and how to serve it.
        loaded: Its adapter with the lengths.

    Returns:
        vLLM's arguments; `spec.engine_kwargs` wins over what is derived here.
    """
    derived: dict[str, Any] = {
        "model": spec.path,
        "runner": "pooling",
        "pooler_config": PoolerConfig(tok_pooling_type="ALL", use_activation=False),
        "dtype": spec.dtype,
        "max_model_len": loaded.max_tokens,
        "max_num_seqs": spec.max_num_seqs,
        "max_num_batched_tokens": max(spec.max_num_batched_tokens, spec.max_num_seqs),
        "tensor_parallel_size": spec.tensor_parallel_size,
        "enforce_eager": spec.enforce_eager,
        "enable_chunked_prefill": True,
        # Token-wise requests must not read the cache (their rows would be missing), so filling it is of no use.
        "enable_prefix_caching": False,
        "disable_log_stats": True,
        "skip_tokenizer_init": True,
    }
    if loaded.max_tokens > loaded.context_tokens:
        # Sizes the table of rotary positions too, which max_model_len alone does not.
        derived["hf_overrides"] = {"max_position_embeddings": loaded.max_tokens}
    if spec.kv_cache_bytes is not None:
        derived["kv_cache_memory_bytes"] = spec.kv_cache_bytes
    else:
        derived["gpu_memory_utilization"] = spec.gpu_memory_utilization
    return AsyncEngineArgs(**(derived | dict(spec.engine_kwargs)))
