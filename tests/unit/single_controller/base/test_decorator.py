# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch

from verl.protocol import DataProto
from verl.single_controller.base.decorator import (
    DataShare,
    Dispatch,
    dispatch_mode_of,
    dispatch_role_of,
    join_results,
    output_ranks,
    register,
    split_arguments,
)

# four ranks, two of which share each chunk; a tensor-parallel mesh numbers neighbours together, a pipeline does not
NEIGHBOURS = [DataShare(0, 2), DataShare(0, 2), DataShare(1, 2), DataShare(1, 2)]
INTERLEAVED = [DataShare(0, 2), DataShare(1, 2), DataShare(0, 2), DataShare(1, 2)]


def own_chunks(count: int) -> list[DataShare]:
    return [DataShare(rank, count) for rank in range(count)]


def batch(num_rows: int, width: int = 2) -> DataProto:
    return DataProto.from_dict(
        tensors={"responses": torch.arange(num_rows * width).reshape(num_rows, width)},
        non_tensors={"uid": [f"u{row}" for row in range(num_rows)]},
        meta_info={"pad_token_id": 9},
    )


def test_register_marks_and_returns_the_same_method() -> None:
    def method() -> int:
        return 1

    assert dispatch_mode_of(method) is None
    assert register(Dispatch.DP_COMPUTE_METRIC)(method) is method
    assert dispatch_mode_of(method) is Dispatch.DP_COMPUTE_METRIC
    assert dispatch_mode_of(3) is None


def test_a_method_names_the_role_whose_shares_count() -> None:
    assert dispatch_role_of(register(Dispatch.DP_COMPUTE_PROTO, role="ref")(lambda: None)) == "ref"
    assert dispatch_role_of(register(Dispatch.DP_COMPUTE_PROTO)(lambda: None)) == "main"


def test_batches_are_cut_wherever_they_stand_and_other_arguments_repeated() -> None:
    calls = split_arguments(own_chunks(3), (batch(6), "x"), {"other": batch(3), "n": 1})
    assert len(calls) == 3
    for rank, (args, kwargs) in enumerate(calls):
        assert args[0].non_tensor_batch["uid"].tolist() == [f"u{2 * rank}", f"u{2 * rank + 1}"]
        assert args[0].batch["responses"].tolist() == batch(6).batch["responses"][2 * rank : 2 * rank + 2].tolist()
        assert kwargs["other"].non_tensor_batch["uid"].tolist() == [f"u{rank}"]
        assert (args[1], kwargs["n"]) == ("x", 1)


@pytest.mark.parametrize("shares", [NEIGHBOURS, INTERLEAVED])
def test_ranks_that_share_a_model_get_the_same_rows(shares: list[DataShare]) -> None:
    calls = split_arguments(shares, (batch(4),), {})
    for share, (args, _) in zip(shares, calls, strict=True):
        assert args[0].non_tensor_batch["uid"].tolist() == [f"u{2 * share.dp_rank}", f"u{2 * share.dp_rank + 1}"]
    of_chunk = [[args[0] for share, (args, _) in zip(shares, calls, strict=True) if share.dp_rank == n] for n in (0, 1)]
    assert all(first is second for first, second in of_chunk)  # one object, so that it is stored once


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="5 rows"):
        split_arguments(own_chunks(2), (batch(5),), {})
    with pytest.raises(ValueError, match="3 rows"):
        split_arguments(NEIGHBOURS, (), {"batch": batch(3)})


@pytest.mark.parametrize("shares", [own_chunks(3), NEIGHBOURS, INTERLEAVED])
def test_what_was_cut_is_joined_again_once_and_in_the_order_of_the_chunks(shares: list[DataShare]) -> None:
    rows = batch(6)
    parts = [args[0] for args, _ in split_arguments(shares, (rows,), {})]
    joined = join_results(Dispatch.DP_COMPUTE_PROTO, shares, parts)
    assert torch.equal(joined.batch["responses"], rows.batch["responses"])
    assert np.array_equal(joined.non_tensor_batch["uid"], rows.non_tensor_batch["uid"])


def test_parts_of_different_width_are_padded_by_the_schema() -> None:
    joined = join_results(Dispatch.DP_COMPUTE_PROTO, own_chunks(2), [batch(1, width=2), batch(1, width=3)])
    assert joined.batch["responses"].tolist() == [[0, 1, 9], [0, 1, 2]]


def test_metrics_come_once_per_chunk_from_ranks_that_may_speak() -> None:
    results = ["a", "b", "c", "d"]
    assert join_results(Dispatch.DP_COMPUTE_METRIC, NEIGHBOURS, results) == ["a", "c"]
    assert join_results(Dispatch.DP_COMPUTE_METRIC, INTERLEAVED, results) == ["a", "b"]
    last_stage = [DataShare(0, 2, False), DataShare(1, 2, False), DataShare(0, 2), DataShare(1, 2)]
    assert join_results(Dispatch.DP_COMPUTE_METRIC, last_stage, results) == ["c", "d"]


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ([DataShare(0, 1), DataShare(0, 2)], r"disagree.*\[1, 2\]"),
        ([DataShare(0, 2), DataShare(0, 2)], r"2 data-parallel ranks are promised, results come from \[0\]"),
        ([DataShare(0, 2), DataShare(1, 2, False)], r"results come from \[0\]"),
    ],
)
def test_shares_that_leave_a_chunk_without_a_voice_are_refused(shares: list[DataShare], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        output_ranks(shares)
