# SPDX-License-Identifier: Apache-2.0
"""Order of a batch's rows so that every rank gets about the same number of tokens of every mini-batch."""

from __future__ import annotations

import numpy as np
import torch

from verl.protocol import DataProto
from verl.utils.seqlen_balancing import balanced_partition


def balanced_order(lengths: np.ndarray, num_ranks: int, mini_batch_rows: int) -> np.ndarray:
    """Choose the order.

    A mini-batch stays what it is, the rows of `ppo_mini_batch_size` consecutive prompts; inside it the rows are dealt
    to the ranks, the same number to each, balanced by tokens. Rank r's consecutive chunk of the reordered batch then
    holds its share of mini-batch 0, then of mini-batch 1, and so on.

    Args:
        lengths: [S] int64, tokens of prompt and response.
        num_ranks: Data-parallel ranks; divides `mini_batch_rows`.
        mini_batch_rows: Rows of one mini-batch; divides S.

    Returns:
        [S] int64, a permutation of the rows.
    """
    shares: list[list[int]] = [[] for _ in range(num_ranks)]
    for first in range(0, len(lengths), mini_batch_rows):
        part = [int(length) for length in lengths[first : first + mini_batch_rows]]
        for rank, rows in enumerate(balanced_partition(part, num_ranks, equal_size=True)):
            shares[rank] += [first + row for row in rows]
    return np.array([row for share in shares for row in share], dtype=np.int64)


def sequence_lengths(batch: DataProto) -> torch.Tensor:
    """Tokens of each row.

    Args:
        batch: [S] rows with `prompt_mask` and `response_mask`.

    Returns:
        [S] int64.
    """
    return batch.batch["prompt_mask"].sum(dim=1) + batch.batch["response_mask"].sum(dim=1)
