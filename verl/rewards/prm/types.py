# SPDX-License-Identifier: Apache-2.0
"""What passes between the reward loop and whatever scores reasoning steps. Knows no model, no engine, no Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

_CHARS_PER_TOKEN = 4


class PRMInputError(ValueError):
    """This request can never be scored (its problem alone exceeds the PRM's context, say): trying again is no use."""


@dataclass(frozen=True)
class ScoreRequest:
    """One response to be scored step by step.

    Args:
        request_id: Unique name of the request, for logs.
        problem: The problem's text, without chat markup.
        steps: [K] pieces of the response, exactly as it was written: joined they give the response.
        num_tokens: Tokens of the response where the caller knows (by any tokenizer); says how much work it is, and
            nothing else.
    """

    request_id: str
    problem: str
    steps: tuple[str, ...]
    num_tokens: int | None = None

    @property
    def work_tokens(self) -> int:
        """Tokens in all: those of the response as far as known, everything else estimated from its characters."""
        response = self.num_tokens
        if response is None:
            response = _estimate_tokens(sum(map(len, self.steps)))
        return response + _estimate_tokens(len(self.problem))


def _estimate_tokens(num_chars: int) -> int:
    """Round up; English, LaTeX and code have three to four characters a token, and only ratios matter here."""
    return -(-num_chars // _CHARS_PER_TOKEN)


@dataclass(frozen=True)
class StepLogits:
    """What the PRM said.

    Args:
        logits: [K, 2] float32, (wrong, right) for each reasoning step, before any softmax.
        flags: "escaped", "windowed", "extended", "cut", "retried"; see `ScoredResponse.flags`.
    """

    logits: np.ndarray
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class PRMInput:
    """One forward pass of a PRM.

    Args:
        token_ids: The whole input.
        score_positions: [k] int64, the rows of the output to keep; [k + 1] where the plan takes differences.
        first_step: Which reasoning step the first kept row scores; the others follow.
    """

    token_ids: list[int]
    score_positions: np.ndarray
    first_step: int = 0


@dataclass(frozen=True)
class PRMPlan:
    """Everything a PRM must run to score one response: one input, or several overlapping windows of a long one.

    Args:
        inputs: Their kept rows, one after the other, score steps 0 to K - 1.
        flags: What was done to the text on the way; see `StepLogits`.
        differences: Rows are running totals, and a step's logits are what they grew by; each input then also keeps
            the row before its first new step.
    """

    inputs: tuple[PRMInput, ...]
    flags: tuple[str, ...] = ()
    differences: bool = False

    @property
    def num_tokens(self) -> int:
        """Tokens of all inputs together."""
        return sum(len(item.token_ids) for item in self.inputs)

    def flagged(self, flags: Sequence[str]) -> PRMPlan:
        """Return the same plan with more flags, in front of its own.

        Args:
            flags: What else was done.
        """
        return replace(self, flags=(*flags, *self.flags))

    def gather(self, rows: Sequence[np.ndarray]) -> StepLogits:
        """Put the kept rows of all inputs together.

        Args:
            rows: [k, 2] for each input, in order; as many as it has `score_positions`.

        Raises:
            ValueError: A scorer gave another number of rows than was asked of it.
        """
        for item, got in zip(self.inputs, rows, strict=True):
            if got.shape != (len(item.score_positions), 2):
                raise ValueError(f"the PRM gave {got.shape} for {len(item.score_positions)} reasoning steps")
        if self.differences:
            rows = [np.diff(got, axis=0) for got in rows]
        whole = np.concatenate([np.zeros((0, 2), np.float32), *rows]).astype(np.float32)
        return StepLogits(whole, self.flags)


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
