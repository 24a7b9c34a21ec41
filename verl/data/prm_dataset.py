# SPDX-License-Identifier: Apache-2.0
"""Labelled solutions for training a PRM: a problem, its reasoning steps, one label per step (TRL's stepwise schema).

Does not know how a PRM is shown a problem or where its score is read: a callable says that.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Literal, TypedDict

from torch.utils.data import Dataset

from verl.config.sft import PRMDataConfig
from verl.data.chat import read_messages
from verl.data.rows import Row, bad_row, read_rows
from verl.utils.errors import UserError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepEncoding:
    """A solution as a PRM reads it.

    Args:
        input_ids: Token ids of problem and steps.
        positions: For each step, the index in `input_ids` where its score is read.
    """

    input_ids: Sequence[int]
    positions: Sequence[int]


EncodeSteps = Callable[[str, Sequence[str]], StepEncoding]


class PRMRow(TypedDict):
    """One labelled solution: `input_ids`; `label_positions` and `labels` (probability of being right), one per step;
    `index` of the row.
    """

    input_ids: list[int]
    label_positions: list[int]
    labels: list[float]
    index: int


class PRMDataset(Dataset[PRMRow]):
    """All labelled solutions of some files, in memory.

    Example:
        >>> dataset = PRMDataset(config.data, adapter_encode, "train")
        >>> dataset[0]["labels"]
        [1.0, 1.0, 0.0]
    """

    def __init__(self, config: PRMDataConfig, encode: EncodeSteps, split: Literal["train", "val"]) -> None:
        """Read, check and encode.

        Args:
            config: Section `data` of the PRM trainer.
            encode: Writes (problem, steps) as tokens and says where each step is scored.
            split: Which files.

        Raises:
            UserError: A file, column or row is not as needed; a row is too long under `truncation=error`, or its first
                step alone does not fit; `truncation` is neither `error` nor `right`.
        """
        if config.truncation not in ("error", "right"):
            raise UserError.for_key(
                "data.truncation",
                config.truncation,
                "only error and right keep labels and steps together",
                "Choose one of them",
            )
        self._config = config
        self._encode = encode
        self._key = f"data.{split}_files"
        self.num_truncated = 0
        files = config.train_files if split == "train" else config.val_files
        rows = read_rows(files, self._key, (config.prompt_key, config.steps_key, config.labels_key))
        self._rows = [self._row(index, row) for index, row in enumerate(rows)]
        logger.info(
            "%s: %d labelled solutions, %d cut to %d tokens",
            self._key,
            len(self._rows),
            self.num_truncated,
            config.max_length,
        )

    def __len__(self) -> int:
        """Count the solutions."""
        return len(self._rows)

    def __getitem__(self, place: int) -> PRMRow:
        """Hand out one solution.

        Args:
            place: Its place.

        Returns:
            The solution.
        """
        return self._rows[place]

    def _row(self, index: int, row: Row) -> PRMRow:
        """Check and encode one row."""
        messages = read_messages(row, self._config.prompt_key, self._key)
        problem = next((m["content"] for m in reversed(messages) if m["role"] == "user"), messages[-1]["content"])
        steps = row.values[self._config.steps_key]
        if (
            not isinstance(steps, list)
            or not steps
            or not all(isinstance(step, str) and step.strip() for step in steps)
        ):
            raise bad_row(row, self._key, f"{self._config.steps_key!r} must be a list of texts, none empty")
        labels = self._labels(row, len(steps))
        encoding = self._fit(row, problem, steps)
        return PRMRow(
            input_ids=list(encoding.input_ids),
            label_positions=list(encoding.positions),
            labels=labels[: len(encoding.positions)],
            index=index,
        )

    def _labels(self, row: Row, num_steps: int) -> list[float]:
        name = self._config.labels_key
        labels = row.values[name]
        if not isinstance(labels, list) or len(labels) != num_steps:
            found = len(labels) if isinstance(labels, list) else type(labels).__name__
            raise bad_row(
                row, self._key, f"{name!r} must have one label for each of the {num_steps} steps, not {found}"
            )
        for label in labels:
            if not isinstance(label, Real) or math.isnan(float(label)) or not 0 <= float(label) <= 1:
                raise bad_row(row, self._key, f"{name!r} must be true, false or a probability, not {label!r}")
        return [float(label) for label in labels]

    def _fit(self, row: Row, problem: str, steps: list[str]) -> StepEncoding:
        """Encode as many whole steps from the first as fit."""
        limit = self._config.max_length
        encoding = self._encode(problem, steps)
        if len(encoding.input_ids) <= limit:
            return encoding
        if self._config.truncation == "error":
            raise UserError.for_key(
                "data.max_length",
                limit,
                f"{row.place} has {len(encoding.input_ids)} tokens and data.truncation=error",
                "Raise the limit, or set data.truncation=right",
            )
        self.num_truncated += 1
        for num_steps in range(len(steps) - 1, 0, -1):
            encoding = self._encode(problem, steps[:num_steps])
            if len(encoding.input_ids) <= limit:
                return encoding
        raise bad_row(row, self._key, f"its problem and first step have over {limit} tokens")
