# SPDX-License-Identifier: Apache-2.0
"""What passes between the reward loop and whatever scores reasoning steps. Knows no model, no engine, no Ray."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np


class PRMInputError(ValueError):
    """This request can never be scored (its problem alone exceeds the PRM's context, say): trying again is no use."""


@dataclass(frozen=True)
class ScoreRequest:
    """One response to be scored step by step.

    Args:
        request_id: Unique name of the request, for logs.
        problem: The problem's text, without chat markup.
        steps: [K] pieces of the response, exactly as it was written: joined they give the response.
    """

    request_id: str
    problem: str
    steps: tuple[str, ...]

    @property
    def num_chars(self) -> int:
        """Characters in all: the measure of work where no tokenizer is at hand."""
        return len(self.problem) + sum(len(step) for step in self.steps)


@dataclass(frozen=True)
class StepLogits:
    """What the PRM said.

    Args:
        logits: [K, 2] float32, (wrong, right) for each reasoning step, before any softmax.
        flags: "escaped", "windowed", "extended", "cut", "retried"; see `ScoredResponse.flags`.
    """

    logits: np.ndarray
    flags: tuple[str, ...] = field(default=())


class ScoreSteps(Protocol):
    """Anything that scores reasoning steps: an in-process model, a Ray actor, a dispatcher over several of them."""

    async def __call__(self, request: ScoreRequest) -> StepLogits:
        """Score one response.

        Args:
            request: The response's problem and reasoning steps.

        Returns:
            As many rows as there are reasoning steps, in their order.

        Raises:
            PRMInputError: The request can never be scored.
            Exception: Scoring failed this time.
        """
        ...
