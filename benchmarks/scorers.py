# SPDX-License-Identifier: Apache-2.0
"""The in-process ways to score answers: the loop that the published README shows, and our `HFScorer`.

Needs neither vLLM nor Ray; the served way is in `served.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from verl.rewards.prm.adapters import QWEN_STEP_TOKEN
from verl.rewards.prm.model import load_prm
from verl.rewards.prm.prompt import strip_step
from verl.rewards.prm.score_space import to_score
from verl.rewards.prm.scorer import HFScorer
from verl.rewards.prm.spec import PRMSpec
from verl.rewards.prm.types import ScoreRequest, ScoreSteps
from verl.utils.tokenizer import load_tokenizer


class Way(Protocol):
    """One way to score all answers; what happens in the constructor is not timed."""

    def __init__(self, spec: PRMSpec) -> None:
        """Load the PRM."""
        ...

    def score(self, requests: Sequence[ScoreRequest]) -> list[np.ndarray]:
        """Return P(right) of every step of every answer, from their texts."""
        ...

    def close(self) -> None:
        """Free the PRM."""
        ...


class ReadmeLoop:
    """One answer at a time: chat template, one forward pass with the head on every token, probabilities by mask.

    Source: the README published with ReasonFlux-PRM-7B, written anew. The model is the one our scorers run.
    """

    def __init__(self, spec: PRMSpec) -> None:
        """Load the PRM.

        Args:
            spec: The PRM and its device.
        """
        self._tokenizer = load_tokenizer(spec.path)
        self._model = load_prm(spec.path, getattr(torch, spec.dtype)).to(spec.device)
        self._step_id = self._tokenizer.convert_tokens_to_ids(QWEN_STEP_TOKEN)

    def score(self, requests: Sequence[ScoreRequest]) -> list[np.ndarray]:
        """See `Way.score`."""
        return [self._score_one(request) for request in requests]

    def close(self) -> None:
        """Drop the model."""
        del self._model

    @torch.no_grad()
    def _score_one(self, request: ScoreRequest) -> np.ndarray:
        steps = [strip_step(step, "\n\n") for step in request.steps]
        messages = [
            {"role": "user", "content": request.problem},
            {"role": "assistant", "content": QWEN_STEP_TOKEN.join(steps) + QWEN_STEP_TOKEN},
        ]
        conversation = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=False)
        encoded = self._tokenizer(conversation, return_tensors="pt", add_special_tokens=False)
        input_ids = encoded["input_ids"].to(self._model.device)
        probabilities = torch.softmax(self._model(input_ids=input_ids).float(), dim=-1)
        return probabilities[0, input_ids[0] == self._step_id, 1].cpu().numpy()


class InProcess:
    """Our `HFScorer`, given all answers at once."""

    def __init__(self, spec: PRMSpec) -> None:
        """Load the PRM.

        Args:
            spec: The PRM and how to run it.
        """
        self._runner = asyncio.Runner()
        self._scorer = HFScorer(spec)
        self._runner.run(self._scorer.start())

    def score(self, requests: Sequence[ScoreRequest]) -> list[np.ndarray]:
        """See `Way.score`."""
        return self._runner.run(score_all(self._scorer, requests))

    def close(self) -> None:
        """Free the model."""
        self._runner.run(self._scorer.close())
        self._runner.close()


async def score_all(score_steps: ScoreSteps, requests: Sequence[ScoreRequest]) -> list[np.ndarray]:
    """Ask for all answers at once.

    Args:
        score_steps: Who is asked.
        requests: The answers.

    Returns:
        P(right) of every step of every answer.
    """
    answers = await asyncio.gather(*(score_steps(request) for request in requests))
    return [to_score(answer.logits, "prob") for answer in answers]
