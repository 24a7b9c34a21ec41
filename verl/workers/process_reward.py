# SPDX-License-Identifier: Apache-2.0
"""A PRM replica as a Ray actor: reasoning steps in, logits out. Knows no batch, no group and no reward."""

from __future__ import annotations

import importlib
import logging
import os

from verl.rewards.prm.spec import PRMSpec, StepScorer
from verl.rewards.prm.types import ScoreRequest, StepLogits
from verl.utils.errors import UserError

logger = logging.getLogger(__name__)

PRM_BACKENDS = {
    "vllm": "verl.workers.vllm_scorer:VLLMScorer",
    "hf": "verl.rewards.prm.scorer:HFScorer",
}
"""Dotted names, so that an engine's packages are loaded only where it is used."""


class ProcessRewardServer:
    """One PRM on its devices; many requests run at once (`max_concurrency` of the actor bounds them).

    Example:
        >>> server = ray.remote(ProcessRewardServer).options(max_concurrency=1000).remote("vllm", spec)
        >>> ray.get(server.start.remote())
        >>> logits = await server.score.remote(request)
    """

    def __init__(self, backend: str, spec: PRMSpec) -> None:
        """Create the scorer; nothing is loaded yet.

        Args:
            backend: A key of `PRM_BACKENDS`.
            spec: The PRM and how to run it.

        Raises:
            UserError: There is no such backend.
        """
        if backend not in PRM_BACKENDS:
            known = ", ".join(PRM_BACKENDS)
            raise UserError.for_key(
                "reward_model.process_reward.backend", backend, f"must be one of {known}", "Choose one"
            )
        module, _, name = PRM_BACKENDS[backend].partition(":")
        self._scorer: StepScorer = getattr(importlib.import_module(module), name)(spec)

    async def start(self) -> int:
        """Load the PRM.

        Returns:
            Process id, for the record of running processes.
        """
        await self._scorer.start()
        return os.getpid()

    async def score(self, request: ScoreRequest) -> StepLogits:
        """See `ScoreSteps`.

        Args:
            request: Problem and reasoning steps of one response.

        Returns:
            Logits of every step.
        """
        return await self._scorer(request)

    async def sleep(self) -> None:
        """See `StepScorer.sleep`."""
        await self._scorer.sleep()

    async def wake(self) -> None:
        """See `StepScorer.wake`."""
        await self._scorer.wake()

    async def close(self) -> None:
        """Free the PRM."""
        await self._scorer.close()
