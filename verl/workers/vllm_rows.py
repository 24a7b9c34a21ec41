# SPDX-License-Identifier: Apache-2.0
"""Reading a PRM's rows out of vLLM engines: from pooled logits, or from the log-probs of two language models.

Knows inputs and positions; knows no reasoning steps and no families.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any, Protocol

import numpy as np
from vllm import PoolingParams, SamplingParams
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM

from verl.rewards.prm.files import find_folder
from verl.rewards.prm.scoring_model import REFERENCE_KEY
from verl.rewards.prm.spec import LoadedAdapter, PRMSpec
from verl.rewards.prm.types import PRMInput
from verl.workers.vllm_prm_args import language_model_args, pooling_args


class RowReader(Protocol):
    """Engines that are running, and how one input's rows are got from them."""

    engines: list[AsyncLLM]
    """The engines."""
    counts: Counter[str]
    """`tokens` shown to the engines so far, and `cached_tokens`, those of them whose work was not done again."""

    async def rows(self, name: str, item: PRMInput) -> np.ndarray:
        """Run one input.

        Args:
            name: Unique among the inputs that run at this time.
            item: Token ids and the positions wanted.

        Returns:
            [k, 2], one row (wrong, right) for each of its `score_positions`.

        Raises:
            RuntimeError: vLLM did not give what was asked of it.
        """
        ...

    def close(self) -> None:
        """End the engines."""
        ...


class PooledRows:
    """Logits of one PRM with a head on every token."""

    def __init__(self, spec: PRMSpec, loaded: LoadedAdapter) -> None:
        """Start the engine, which takes a while.

        Args:
            spec: The PRM and how to serve it.
            loaded: Its adapter.
        """
        self.engines = [AsyncLLM.from_engine_args(pooling_args(spec, loaded))]
        self.counts: Counter[str] = Counter()

    async def rows(self, name: str, item: PRMInput) -> np.ndarray:
        """See `RowReader.rows`.

        Of an input that reads the prefix cache only the uncached tail comes back. Its last token is always there, so
        inputs of which nothing else is wanted may read it.
        """
        ids = _shown(item)
        params = PoolingParams(
            task="token_classify", use_activation=False, skip_reading_prefix_cache=len(item.score_positions) > 1
        )
        output = await _last(self.engines[0].encode({"prompt_token_ids": ids}, params, name), name)
        logits = output.outputs.data
        expected = (len(ids) - output.num_cached_tokens, 2)
        if tuple(logits.shape) != expected:
            raise RuntimeError(f"vLLM gave {tuple(logits.shape)} logits in place of {expected} for {name}")
        self.counts.update(tokens=len(ids), cached_tokens=output.num_cached_tokens)
        kept: np.ndarray = logits.float().cpu().numpy()[item.score_positions - len(ids)]
        return kept

    def close(self) -> None:
        """See `RowReader.close`."""
        for engine in self.engines:
            engine.shutdown()
        self.engines = []


class LogRatioRows:
    """Running totals of beta * (log pi - log pi_ref) of an implicit PRM and its reference, each in its own engine.

    Source: PRIME (arXiv 2502.01456), q_t = beta * sum_{i<=t} log(pi(y_i) / pi_ref(y_i)). Here the sum begins behind
    the first position kept, which changes no difference of two totals.
    """

    def __init__(self, spec: PRMSpec, loaded: LoadedAdapter) -> None:
        """Start the engines, one after the other: the second measures what memory the first has left.

        Args:
            spec: The PRM, its reference and beta.
            loaded: Its adapter.
        """
        self._beta = spec.implicit_beta
        self.engines: list[AsyncLLM] = []
        self.counts: Counter[str] = Counter()
        try:
            for folder in (loaded.folder, find_folder(spec.reference_path, REFERENCE_KEY)):
                arguments = language_model_args(spec, loaded, folder, num_engines=2)
                self.engines.append(AsyncLLM.from_engine_args(arguments))
        except BaseException:
            self.close()
            raise

    async def rows(self, name: str, item: PRMInput) -> np.ndarray:
        """See `RowReader.rows`; [k, 2] float64 rows (0, total)."""
        ids = _shown(item)
        self.counts.update(tokens=len(ids) * len(self.engines))
        model, reference = await asyncio.gather(*(_log_probs(engine, ids, name) for engine in self.engines))
        ratios = self._beta * (model - reference)
        ratios[: item.score_positions[0] + 1] = 0.0
        totals = np.cumsum(ratios)[item.score_positions]
        return np.stack([np.zeros_like(totals), totals], axis=1)

    def close(self) -> None:
        """See `RowReader.close`."""
        for engine in self.engines:
            engine.shutdown()
        self.engines = []


def _shown(item: PRMInput) -> list[int]:
    """Leave out what stands behind the last position kept: no causal model looks ahead."""
    return item.token_ids[: int(item.score_positions[-1]) + 1]


async def _log_probs(engine: AsyncLLM, ids: list[int], name: str) -> np.ndarray:
    """Return [n] float64 log-probs of the tokens shown, 0 for the first, which nothing predicts."""
    params = SamplingParams(
        max_tokens=1,  # vLLM's least; the token is not looked at
        temperature=0.0,
        prompt_logprobs=0,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )
    output = await _last(engine.generate({"prompt_token_ids": ids}, params, name), name)
    entries = output.prompt_logprobs or []
    if len(entries) != len(ids):
        raise RuntimeError(f"vLLM gave {len(entries)} log-probs for {len(ids)} tokens of {name}")
    found = (entry[token].logprob for token, entry in zip(ids[1:], entries[1:], strict=True))
    return np.fromiter((0.0, *found), dtype=np.float64, count=len(ids))


async def _last(stream: AsyncIterator[Any], name: str) -> Any:
    outputs = [output async for output in stream]
    if not outputs:
        raise RuntimeError(f"vLLM ended request {name} without output")
    return outputs[-1]
