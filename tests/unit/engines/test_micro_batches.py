# SPDX-License-Identifier: Apache-2.0
from dataclasses import dataclass
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.tiny_models import random_padded
from verl.engines.micro_batches import MicroBatchSpec, check_budget, make_micro_batches, plan_micro_batches
from verl.utils.errors import UserError


@dataclass
class OtherRank:
    """Stands for the ranks' agreement: another rank whose every answer is at least `floor`."""

    floor: int = 0

    def all_reduce(self, values: torch.Tensor, op: Literal["sum", "max"]) -> torch.Tensor:
        assert op == "max"
        return values.clamp(min=self.floor)


def _check_plan(parts: list[list[int]], lengths: list[int], spec: MicroBatchSpec) -> None:
    assert sorted(i for part in parts for i in part) == list(range(len(lengths)))
    assert all(parts)
    if spec.max_tokens is not None:
        assert all(sum(lengths[i] for i in part) <= spec.max_tokens for part in parts)
    if spec.max_sequences is not None:
        assert all(len(part) <= spec.max_sequences for part in parts)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    slack=st.none() | st.integers(0, 60),
    max_sequences=st.none() | st.integers(1, 13),
)
def test_every_sequence_once_and_every_limit_kept(
    lengths: list[int], slack: int | None, max_sequences: int | None
) -> None:
    spec = MicroBatchSpec(None if slack is None else max(lengths) + slack, max_sequences)
    _check_plan(plan_micro_batches(lengths, spec), lengths, spec)


def test_no_limit_gives_one_micro_batch_and_limits_the_fewest_balanced_ones() -> None:
    assert plan_micro_batches([5, 6, 7], MicroBatchSpec()) == [[0, 1, 2]]
    parts = plan_micro_batches([10, 10, 2, 2, 2, 2], MicroBatchSpec(max_tokens=14))
    assert sorted(sum([10, 10, 2, 2, 2, 2][i] for i in part) for part in parts) == [14, 14]
    assert len(plan_micro_batches([3, 50, 4, 41, 5, 30, 2], MicroBatchSpec(max_sequences=3))) == 3


def test_a_rank_splits_further_when_another_needs_more_micro_batches() -> None:
    padded = random_padded([3, 5, 2, 4], [4, 1, 6, 2])
    micro_batches = make_micro_batches(OtherRank(3), padded, [0, 1, 2, 3], MicroBatchSpec(max_tokens=40))
    assert len(micro_batches) == 3
    assert sorted(row for m in micro_batches for row in m.rows.tolist()) == [0, 1, 2, 3]
    assert all(len(m.target_ids) > 0 for m in micro_batches)


def test_a_rank_with_too_few_sequences_joins_with_fillers_that_have_no_targets() -> None:
    padded = random_padded([3, 5], [4, 1])
    micro_batches = make_micro_batches(OtherRank(4), padded, [1, 0], MicroBatchSpec())
    assert [len(m.target_ids) for m in micro_batches[2:]] == [0, 0]
    assert sorted(len(m.target_ids) for m in micro_batches[:2]) == [1, 4]
    assert all(m.num_tokens > 0 for m in micro_batches)


def test_padded_micro_batches_on_request() -> None:
    padded = random_padded([3, 5], [4, 1])
    (micro_batch,) = make_micro_batches(OtherRank(), padded, [0, 1], MicroBatchSpec(padded=True))
    assert micro_batch.num_tokens == 14


def test_a_budget_below_the_longest_sequence_of_any_rank_names_key_value_and_mend() -> None:
    with pytest.raises(UserError, match=r"ppo_max_token_len_per_gpu=10: .*17 tokens.*at least 17"):
        check_budget(17, MicroBatchSpec(max_tokens=10))
    # Sequences of this rank fit; the other rank's do not.
    with pytest.raises(UserError, match="17 tokens"):
        make_micro_batches(OtherRank(17), random_padded([3], [4]), [0], MicroBatchSpec(max_tokens=10))
