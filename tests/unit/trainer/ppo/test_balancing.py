# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from itertools import combinations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from verl.protocol import DataProto
from verl.trainer.ppo.balancing import balanced_order, sequence_lengths


def rank_shares(order: np.ndarray, num_ranks: int) -> list[list[int]]:
    """What each rank gets when the reordered batch is cut into consecutive chunks."""
    return [chunk.tolist() for chunk in np.split(order, num_ranks)]


@given(data=st.data(), num_ranks=st.integers(1, 4), rows_per_rank=st.integers(1, 4), num_mini=st.integers(1, 3))
def test_ranks_hold_equal_shares_of_each_mini_batch_in_turn(
    data: st.DataObject, num_ranks: int, rows_per_rank: int, num_mini: int
) -> None:
    mini = num_ranks * rows_per_rank
    lengths = np.array(data.draw(st.lists(st.integers(1, 50), min_size=mini * num_mini, max_size=mini * num_mini)))
    order = balanced_order(lengths, num_ranks, mini)
    assert order.dtype == np.int64
    assert sorted(order) == list(range(len(lengths)))
    for share in rank_shares(order, num_ranks):
        owners = [row // mini for row in share]
        assert owners == [number for number in range(num_mini) for _ in range(rows_per_rank)]


def test_tokens_of_a_mini_batch_are_split_as_well_as_the_best_of_all_splits() -> None:
    lengths = np.array([40, 30, 20, 10, 9, 1, 2, 3])
    shares = rank_shares(balanced_order(lengths, num_ranks=2, mini_batch_rows=4), 2)
    for first in (0, 4):
        rows = range(first, first + 4)
        total = sum(lengths[rows])
        best = min(abs(total - 2 * sum(lengths[list(pair)])) for pair in combinations(rows, 2))
        found = [sum(lengths[row] for row in share if row in rows) for share in shares]
        assert abs(found[0] - found[1]) == best


def test_sequence_lengths_count_prompt_and_response() -> None:
    batch = DataProto.from_dict(
        tensors={
            "prompt_mask": torch.tensor([[0, 1, 1], [1, 1, 1]]),
            "response_mask": torch.tensor([[1, 0], [1, 1]]),
        }
    )
    assert sequence_lengths(batch).tolist() == [3, 5]
