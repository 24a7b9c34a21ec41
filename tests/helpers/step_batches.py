# SPDX-License-Identifier: Apache-2.0
"""Small batches of responses with step scores for the estimators' tests, written out or drawn at random."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from verl.algorithms.inputs import AdvantageInputs, pad_steps

Steps = list[list[tuple[float, int]]]


@dataclass(frozen=True)
class StepBatch:
    """Responses as Python lists, so that a reference can loop over them without tensors.

    Attributes:
        steps: Per response its (score, last token) pairs.
        rules: Outcome rewards.
        lengths: Response tokens.
        groups: Group numbers.
        scored: Whether the scorer answered; an unscored response has no steps.
        correct: The verifier's verdict.
    """

    steps: Steps
    rules: list[float]
    lengths: list[int]
    groups: list[int]
    scored: list[bool]
    correct: list[bool]

    def group_of(self, row: int) -> list[int]:
        """Return the rows of the row's group, itself included."""
        return [other for other in range(len(self.groups)) if self.groups[other] == self.groups[row]]

    def others_of(self, row: int) -> list[int]:
        """Return the other rows of the row's group."""
        return [other for other in self.group_of(row) if other != row]

    def is_group_scored(self, row: int) -> bool:
        """Return whether every response of the row's group was scored."""
        return all(self.scored[other] for other in self.group_of(row))

    def reordered(self, order: list[int]) -> StepBatch:
        """Return the same responses in another order."""
        return StepBatch(**{field.name: [getattr(self, field.name)[row] for row in order] for field in fields(self)})

    def inputs(self, **settings: Any) -> AdvantageInputs:
        """Return the tensors an estimator reads; the token rewards are NaN, so that reading them shows."""
        width = max([1, *self.lengths])
        scores, ends, mask = pad_steps(
            [np.array([score for score, _ in row], np.float32) for row in self.steps],
            [np.array([end for _, end in row], np.int64) for row in self.steps],
        )
        return AdvantageInputs(
            torch.full((len(self.steps), width), torch.nan),
            torch.tensor([[int(token < length) for token in range(width)] for length in self.lengths]),
            torch.tensor(self.groups),
            step_scores=scores,
            step_ends=ends,
            step_mask=mask,
            is_scored=torch.tensor(self.scored),
            rule_scores=torch.tensor(self.rules, dtype=torch.float32),
            is_correct=torch.tensor(self.correct),
            **settings,
        )


def batch_of(steps: Steps, rules: list[float], groups: list[int] | None = None, **others: Any) -> StepBatch:
    """Build a batch by hand.

    Args:
        steps: Per response its (score, last token) pairs.
        rules: Outcome rewards; a positive one is a correct answer.
        groups: Group numbers; None puts all responses into one.
        others: `lengths` (default: one token, EOS, behind the last step), `scored`, `correct`.
    """
    return StepBatch(
        steps=steps,
        rules=rules,
        lengths=others.get("lengths", [(row[-1][1] if row else -1) + 2 for row in steps]),
        groups=[0] * len(rules) if groups is None else groups,
        scored=others.get("scored", [True] * len(rules)),
        correct=others.get("correct", [rule > 0 for rule in rules]),
    )


@st.composite
def step_batches(draw: st.DrawFn) -> StepBatch:
    """Ragged steps, empty and tokenless responses, equal scores, unscored responses, groups of one to six."""
    lengths, steps, scored = [], [], []
    for _ in range(draw(st.integers(1, 6))):
        length = draw(st.integers(0, 6))
        ends = sorted(draw(st.sets(st.integers(0, length - 1)))) if length else []
        score = st.sampled_from([-1.0, 0.0, 0.3, 0.9995, 1.0])
        scored.append(draw(st.integers(0, 5)) > 0)
        lengths.append(length)
        steps.append([(draw(score), end) for end in ends] if scored[-1] else [])
    count = range(len(lengths))
    return StepBatch(
        steps=steps,
        rules=[draw(st.sampled_from([-1.0, 1.0, 0.5])) for _ in count],
        lengths=lengths,
        groups=[draw(st.integers(0, 2)) for _ in count],
        scored=scored,
        correct=[draw(st.booleans()) for _ in count],
    )


def assert_rows(found: torch.Tensor, expected: list[list[float]], tolerance: float = 1e-4) -> None:
    """Compare a matrix with a table of Python numbers."""
    assert found.dtype == torch.float32
    assert found.tolist() == [pytest.approx(row, abs=tolerance) for row in expected]


def table_of(batch: StepBatch, value: Callable[[int, int], float]) -> list[list[float]]:
    """Write out [S, R]: `value(row, token)` on the response's tokens, 0 behind them."""
    width = max([1, *batch.lengths])
    return [
        [value(row, token) if token < batch.lengths[row] else 0.0 for token in range(width)]
        for row in range(len(batch.rules))
    ]


def assert_order_does_not_matter(
    estimator: Callable[[AdvantageInputs], tuple[torch.Tensor, torch.Tensor]], batch: StepBatch, shuffle: random.Random
) -> None:
    """Permute the responses and expect the same numbers, permuted."""
    order = list(range(len(batch.rules)))
    shuffle.shuffle(order)
    straight = estimator(batch.inputs())
    moved = estimator(batch.reordered(order).inputs())
    for before, after in zip(straight, moved, strict=True):
        torch.testing.assert_close(after, before[order], atol=1e-5, rtol=0)
