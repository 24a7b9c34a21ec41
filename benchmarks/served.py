# SPDX-License-Identifier: Apache-2.0
"""The served way to score answers, as training does it: replicas on Ray, vLLM inside, a dispatcher in front."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import ray

from benchmarks.scorers import score_all
from verl.rewards.prm.dispatch import DispatchSettings, spread_over
from verl.rewards.prm.spec import PRMSpec
from verl.rewards.prm.types import ScoreRequest, StepLogits
from verl.trainer.ppo.placement import actor_environment, connect_ray
from verl.workers.process_reward import ProcessRewardServer

_START_TIMEOUT_S = 600


class Served:
    """One `ProcessRewardServer` with vLLM."""

    def __init__(self, spec: PRMSpec) -> None:
        """Start Ray and the replica.

        Args:
            spec: The PRM and how to serve it.
        """
        self._stack = ExitStack()
        connect_ray({"log_to_driver": False}, 1, spec.device, self._stack)
        options = {
            "num_cpus": 0,
            "num_gpus": 1 if spec.device == "cuda" else 0,
            "max_concurrency": 4096,
            "runtime_env": {"env_vars": actor_environment(spec.device)},
        }
        self._server = ray.remote(ProcessRewardServer).options(**options).remote("vllm", spec)
        ray.get(self._server.start.remote(), timeout=_START_TIMEOUT_S)
        self._runner = asyncio.Runner()
        self._dispatcher = spread_over([self._ask], DispatchSettings())

    def score(self, requests: Sequence[ScoreRequest]) -> list[np.ndarray]:
        """See `benchmarks.scorers.Way.score`."""
        return self._runner.run(score_all(self._dispatcher, requests))

    def close(self) -> None:
        """End replica and Ray."""
        ray.get(self._server.close.remote(), timeout=60)
        ray.kill(self._server)
        self._runner.close()
        self._stack.close()

    async def _ask(self, request: ScoreRequest) -> StepLogits:
        answer: Any = await self._server.score.remote(request)
        return answer
