# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch

from verl.protocol import DataProto
from verl.single_controller.base.decorator import Dispatch, dispatch_mode_of, join_results, register, split_arguments


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


def test_one_to_all_gives_every_rank_the_whole_batch() -> None:
    rows = batch(5)
    calls = split_arguments(Dispatch.ONE_TO_ALL, 2, (rows, 3), {"flag": True})
    assert len(calls) == 2
    for args, kwargs in calls:
        assert args[0] is rows and args[1] == 3 and kwargs == {"flag": True}


@pytest.mark.parametrize("mode", [Dispatch.DP_COMPUTE_PROTO, Dispatch.DP_COMPUTE_METRIC])
def test_batches_are_cut_wherever_they_stand_and_other_arguments_repeated(mode: Dispatch) -> None:
    calls = split_arguments(mode, 3, (batch(6), "x"), {"other": batch(3), "n": 1})
    assert len(calls) == 3
    for rank, (args, kwargs) in enumerate(calls):
        assert args[0].non_tensor_batch["uid"].tolist() == [f"u{2 * rank}", f"u{2 * rank + 1}"]
        assert args[0].batch["responses"].tolist() == batch(6).batch["responses"][2 * rank : 2 * rank + 2].tolist()
        assert kwargs["other"].non_tensor_batch["uid"].tolist() == [f"u{rank}"]
        assert (args[1], kwargs["n"]) == ("x", 1)


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="5 rows"):
        split_arguments(Dispatch.DP_COMPUTE_PROTO, 2, (batch(5),), {})
    with pytest.raises(ValueError, match="1 rows"):
        split_arguments(Dispatch.DP_COMPUTE_METRIC, 2, (), {"batch": batch(1)})


def test_what_was_cut_is_joined_again_in_rank_order() -> None:
    rows = batch(6)
    parts = [args[0] for args, _ in split_arguments(Dispatch.DP_COMPUTE_PROTO, 3, (rows,), {})]
    joined = join_results(Dispatch.DP_COMPUTE_PROTO, parts)
    assert torch.equal(joined.batch["responses"], rows.batch["responses"])
    assert np.array_equal(joined.non_tensor_batch["uid"], rows.non_tensor_batch["uid"])


def test_parts_of_different_width_are_padded_by_the_schema() -> None:
    joined = join_results(Dispatch.DP_COMPUTE_PROTO, [batch(1, width=2), batch(1, width=3)])
    assert joined.batch["responses"].tolist() == [[0, 1, 9], [0, 1, 2]]


@pytest.mark.parametrize("mode", [Dispatch.ONE_TO_ALL, Dispatch.DP_COMPUTE_METRIC])
def test_other_results_stay_a_list(mode: Dispatch) -> None:
    results = [{"loss": 1.0}, {"loss": 2.0}]
    assert join_results(mode, results) == results
