# SPDX-License-Identifier: Apache-2.0
"""What an advantage estimator may read, as plain tensors, and the two helpers that turn batch columns into them.

It knows no `DataProto` and no config tree: the trainer fills one `AdvantageInputs` and hands it to whichever estimator
is configured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

_PER_RESPONSE = ("is_scored", "rule_scores", "is_correct", "reward_baselines")


@dataclass(frozen=True)
class EstimatorOptions:
    """Settings of single estimators; each is read by the one its name begins with.

    Attributes:
        minform_temperature: T of `grpo_minform`'s softmax over steps; the smaller, the closer to the minimum.
        delta_clip: Whether `grpo_delta` clips.
        delta_delta: Whether `grpo_delta` takes differences.
        delta_eta: Where it clips, in units of the step scores.
        gdpo_batch_norm: Whether `gdpo` brings the batch to one scale.

    Example:
        >>> EstimatorOptions(minform_temperature=0.05).delta_eta
        0.9
    """

    minform_temperature: float = 0.1
    delta_clip: bool = True
    delta_delta: bool = True
    delta_eta: float = 0.9
    gdpo_batch_norm: bool = True


@dataclass(frozen=True)
class AdvantageInputs:
    """Everything an estimator may read. S sequences, R response tokens, K the most reasoning steps of any sequence.

    The optional columns are None unless the configured estimator reads them (`adv_estimator_columns` says which).

    Attributes:
        token_level_rewards: [S, R] float32, 0 outside `response_mask`.
        response_mask: [S, R] int64 or bool, 1 on the response's own tokens, EOS included.
        group_index: [S] int64; sequences of one prompt share a number. Any numbers, any order of rows.
        step_scores: [S, K] float32, the scorer's raw score of each reasoning step; anything where `step_mask` is 0.
        step_ends: [S, K] int64, column of each reasoning step's last token, rising; anything where `step_mask` is 0.
        step_mask: [S, K] bool, true on steps that exist, at the left of each row.
        is_scored: [S] bool, false where the process scorer failed for good (an empty response IS scored, with no
            steps); None means all true.
        rule_scores: [S] float32, the outcome reward r_out of the paper's Eq. 12, penalties already added.
        is_correct: [S] bool, the verifier's verdict.
        reward_baselines: [S] float32, the summed token-level scores of the greedy response to the same prompt.
        beta: Weight of the process part, 1 - beta is that of the outcome part.
        norm_adv_by_std: True divides by the group's standard deviation (GRPO), False only centres (Dr.GRPO).
        epsilon: A standard deviation below it counts as zero (advantage 0); it is also added to the divisor.
        options: Settings that only one estimator reads.

    Example:
        >>> AdvantageInputs(torch.tensor([[0.0, 1.0]]), torch.ones(1, 2), torch.tensor([0])).beta
        0.75
    """

    token_level_rewards: torch.Tensor
    response_mask: torch.Tensor
    group_index: torch.Tensor
    step_scores: torch.Tensor | None = None
    step_ends: torch.Tensor | None = None
    step_mask: torch.Tensor | None = None
    is_scored: torch.Tensor | None = None
    rule_scores: torch.Tensor | None = None
    is_correct: torch.Tensor | None = None
    reward_baselines: torch.Tensor | None = None
    beta: float = 0.75
    norm_adv_by_std: bool = True
    epsilon: float = 1e-6
    options: EstimatorOptions = EstimatorOptions()

    def __post_init__(self) -> None:
        """Refuse tensors whose shapes disagree and step ends outside the response."""
        if self.token_level_rewards.ndim != 2:
            raise ValueError(f"token_level_rewards has shape {tuple(self.token_level_rewards.shape)}, expected [S, R]")
        num_rows, width = self.token_level_rewards.shape
        shapes = {"response_mask": (num_rows, width), "group_index": (num_rows,)}
        shapes |= {name: (num_rows,) for name in _PER_RESPONSE}
        if self.step_scores is not None:
            shapes |= {name: tuple(self.step_scores.shape) for name in ("step_ends", "step_mask")}
            shapes["step_scores"] = (num_rows, self.step_scores.shape[-1])
        for name, shape in shapes.items():
            value = getattr(self, name)
            if value is not None and tuple(value.shape) != shape:
                raise ValueError(f"{name} has shape {tuple(value.shape)}, expected {shape}")
        self._check_steps(width)

    def _check_steps(self, width: int) -> None:
        given = [value is not None for value in (self.step_scores, self.step_ends, self.step_mask)]
        if any(given) != all(given):
            raise ValueError("step_scores, step_ends and step_mask go together")
        if self.step_ends is None or self.step_mask is None or self.step_scores is None:
            return
        mask = self.step_mask.bool()
        if (mask[:, 1:] & ~mask[:, :-1]).any():
            raise ValueError("step_mask has a gap: a row's steps stand at its left end")
        if (mask[:, 1:] & (self.step_ends[:, 1:] < self.step_ends[:, :-1])).any():
            raise ValueError("step_ends go back: the steps of a row stand in the order in which they end")
        ends = self.step_ends[mask]
        if ends.numel() and (int(ends.min()) < 0 or int(ends.max()) >= width):
            raise ValueError(f"step_ends {int(ends.min())}..{int(ends.max())} lie outside the {width} response tokens")
        if not torch.isfinite(self.step_scores[mask]).all():
            raise ValueError("step_scores hold NaN or infinity; a failed scorer belongs into is_scored, with no steps")

    def only(self, rows: torch.Tensor) -> AdvantageInputs:
        """Leave out responses.

        Args:
            rows: [S] bool, which to keep.

        Returns:
            The same inputs with the other responses gone.
        """
        cut: dict[str, Any] = {
            name: value[rows] for name, value in vars(self).items() if isinstance(value, torch.Tensor)
        }
        return replace(self, **cut)

    def require(self, *names: str) -> None:
        """Refuse to go on without some optional columns.

        Args:
            names: Attributes the calling estimator reads.

        Raises:
            ValueError: One of them is None.
        """
        missing = [name for name in names if getattr(self, name) is None]
        if missing:
            raise ValueError(f"the advantage estimator reads {missing}, which the batch does not have")


def group_numbers(uids: Sequence[str] | np.ndarray) -> torch.Tensor:
    """Number the groups of a batch.

    Args:
        uids: S prompt identities; equal means same group.

    Returns:
        [S] int64, 0, 1, 2, ... in the order in which the groups first appear.
    """
    seen: dict[str, int] = {}
    return torch.tensor([seen.setdefault(uid, len(seen)) for uid in uids], dtype=torch.int64)


def pad_steps(
    step_scores: Sequence[np.ndarray], step_ends: Sequence[np.ndarray]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pad the two ragged step columns to the longest row.

    Args:
        step_scores: S arrays [K_n] float32; K_n may be 0.
        step_ends: S arrays [K_n] int64.

    Returns:
        `step_scores` [S, K] float32, `step_ends` [S, K] int64, `step_mask` [S, K] bool; K is at least 1.

    Raises:
        ValueError: A row has more scores than ends or the other way round.
    """
    counts = [len(row) for row in step_scores]
    if counts != [len(row) for row in step_ends]:
        raise ValueError("step_scores and step_ends differ in the number of steps of a row")
    shape = (len(counts), max([1, *counts]))
    scores, ends = torch.zeros(shape), torch.zeros(shape, dtype=torch.int64)
    mask = torch.zeros(shape, dtype=torch.bool)
    for row, count in enumerate(counts):
        scores[row, :count] = torch.as_tensor(np.asarray(step_scores[row], dtype=np.float32))
        ends[row, :count] = torch.as_tensor(np.asarray(step_ends[row], dtype=np.int64))
        mask[row, :count] = True
    return scores, ends, mask
