# SPDX-License-Identifier: Apache-2.0
"""A PRM of any family served by vLLM in this process.

    consumes   requests, as they come
    produces   the logits of their reasoning steps
    waits for  vLLM, which batches whatever requests are there

Knows plans and rows; how rows are got from an engine is `vllm_rows`'s matter.
"""

from __future__ import annotations

import asyncio
import itertools
import logging

from verl.rewards.prm.spec import LoadedAdapter, PRMSpec, load_adapter
from verl.rewards.prm.types import ScoreRequest, StepLogits
from verl.rollout.vllm_engine import while_alive
from verl.workers.vllm_rows import LogRatioRows, PooledRows, RowReader

logger = logging.getLogger(__name__)


class VLLMScorer:
    """One served PRM (an implicit one is two language models in two engines).

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
        self._loaded: LoadedAdapter | None = None
        self._reader: RowReader | None = None
        self._numbers = itertools.count()

    async def start(self) -> None:
        """Load tokenizer and engine."""
        self._loaded = load_adapter(self._spec)
        logger.info("PRM adapter %s (%s), %d tokens", self._loaded.name, self._loaded.reason, self._loaded.max_tokens)
        reader = LogRatioRows if self._loaded.head.kind == "log_ratio" else PooledRows
        self._reader = reader(self._spec, self._loaded)

    async def __call__(self, request: ScoreRequest) -> StepLogits:
        """See `ScoreSteps`."""
        assert self._loaded is not None and self._reader is not None, "start() was not awaited"
        plan = self._loaded.adapter.plan(request)
        # vLLM wants names unique among running requests; the same response may be asked for again after a time-out.
        named = [(f"{request.request_id}#{next(self._numbers)}", item) for item in plan.inputs]
        return plan.gather(await asyncio.gather(*(self._reader.rows(name, item) for name, item in named)))

    @property
    def counts(self) -> dict[str, int]:
        """Tokens shown to the engines, and those among them that came from the prefix cache."""
        counts = self._reader.counts if self._reader is not None else {}
        return {name: counts.get(name, 0) for name in ("tokens", "cached_tokens")}

    async def sleep(self) -> None:
        """See `StepScorer.sleep`."""
        assert self._reader is not None, "start() was not awaited"
        await asyncio.gather(*(while_alive(engine, engine.sleep(level=1)) for engine in self._reader.engines))

    async def wake(self) -> None:
        """See `StepScorer.wake`."""
        assert self._reader is not None, "start() was not awaited"
        await asyncio.gather(*(while_alive(engine, engine.wake_up()) for engine in self._reader.engines))

    async def close(self) -> None:
        """End the engines."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None
