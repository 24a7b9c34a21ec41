# SPDX-License-Identifier: Apache-2.0
"""Small batches of responses with rewards on their tokens, for estimators that read no step scores."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from hypothesis import strategies as st

from verl.algorithms.inputs import AdvantageInputs


@dataclass(frozen=True)
class RewardBatch:
    """Responses as Python lists.

    Attributes:
        rewards: Per response the rewards of its tokens; an empty list is a response without tokens.
        groups: Group numbers.
        greedy: Summed reward of the greedy response to the same prompt.
    """

    rewards: list[list[float]]
    groups: list[int]
    greedy: list[float]

    def group_of(self, row: int) -> list[int]:
        """Return the rows of the row's group, itself included."""
        return [other for other in range(len(self.groups)) if self.groups[other] == self.groups[row]]

    def total(self, row: int) -> float:
        """Return the response's reward."""
        return sum(self.rewards[row])

    def inputs(self, **settings: Any) -> AdvantageInputs:
        """Return the tensors an estimator reads; NaN behind each response, so that reading it shows."""
        width = max([1, *map(len, self.rewards)])
        padded = [row + [float("nan")] * (width - len(row)) for row in self.rewards]
        return AdvantageInputs(
            torch.tensor(padded),
            torch.tensor([[int(token < len(row)) for token in range(width)] for row in self.rewards]),
            torch.tensor(self.groups),
            reward_baselines=torch.tensor(self.greedy),
            **settings,
        )

    def table(self, value: Callable[[int, int], float]) -> list[list[float]]:
        """Write out [S, R]: `value(row, token)` on the response's tokens, 0 behind them."""
        width = max([1, *map(len, self.rewards)])
        return [
            [value(row, token) if token < len(rewards) else 0.0 for token in range(width)]
            for row, rewards in enumerate(self.rewards)
        ]


def one_reward_each(rewards: list[float], lengths: list[int], groups: list[int] | None = None) -> RewardBatch:
    """Build responses whose only reward is on the last token."""
    rows = [[0.0] * (length - 1) + [reward] for reward, length in zip(rewards, lengths, strict=True)]
    return RewardBatch(rows, [0] * len(rows) if groups is None else groups, [0.0] * len(rows))


@st.composite
def reward_batches(draw: st.DrawFn) -> RewardBatch:
    """Dense and sparse rewards, equal ones, responses without tokens, groups of one to six."""
    count = draw(st.integers(1, 6))
    number = st.sampled_from([0.0, 0.0, 1.0, -1.0, 0.3])
    return RewardBatch(
        rewards=[draw(st.lists(number, max_size=5)) for _ in range(count)],
        groups=[draw(st.integers(0, 2)) for _ in range(count)],
        greedy=[draw(number) for _ in range(count)],
    )


def assert_rows_may_stand_anywhere(
    estimator: Callable[[AdvantageInputs], tuple[torch.Tensor, torch.Tensor]],
    batch: RewardBatch,
    shuffle: random.Random,
) -> None:
    """Permute the responses and expect the same numbers, permuted."""
    order = list(range(len(batch.rewards)))
    shuffle.shuffle(order)
    moved = RewardBatch(**{field.name: [getattr(batch, field.name)[row] for row in order] for field in fields(batch)})
    for before, after in zip(estimator(batch.inputs()), estimator(moved.inputs()), strict=True):
        torch.testing.assert_close(after, before[order], atol=1e-5, rtol=0)
