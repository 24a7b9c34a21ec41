# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from tests.helpers.rollouts import rollout_output
from verl.batch_schema import check
from verl.protocol import DataProto
from verl.rollout.to_batch import to_batch


def prompts() -> DataProto:
    return DataProto.from_dict(
        tensors={"prompts": torch.tensor([[0, 5], [6, 7]]), "prompt_mask": torch.tensor([[0, 1], [1, 1]])},
        non_tensors={"uid": ["a", "b"]},
    )


def test_columns_by_hand() -> None:
    outputs = [
        [
            rollout_output("a", 0, "xy", token_ids=[8, 9, 1], log_probs=[-1.0, -2.0, -0.25]),
            rollout_output("a", 1, "z", token_ids=[4], log_probs=[-3.0], finish_reason="length"),
        ],
        [
            rollout_output("b", 0, "", token_ids=[], log_probs=[], finish_reason="abort"),
            rollout_output("b", 1, "w", token_ids=[2, 1], log_probs=[-1.5, -0.5], policy_version=4),
        ],
    ]
    batch = to_batch(prompts(), outputs, pad_token_id=77)
    assert batch.non_tensor_batch["uid"].tolist() == ["a", "a", "b", "b"]
    assert batch.batch["prompts"].tolist() == [[0, 5], [0, 5], [6, 7], [6, 7]]
    assert batch.batch["responses"].tolist() == [[8, 9, 1], [4, 77, 77], [77, 77, 77], [2, 1, 77]]
    assert batch.batch["response_mask"].tolist() == [[1, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 0]]
    expected = [[-1.0, -2.0, -0.25], [-3.0, 0, 0], [0, 0, 0], [-1.5, -0.5, 0]]
    assert batch.batch["rollout_log_probs"].tolist() == expected
    assert batch.batch["policy_version"].tolist() == [3, 3, 3, 4]
    assert batch.non_tensor_batch["response_text"].tolist() == ["xy", "z", "", "w"]
    assert batch.non_tensor_batch["finish_reason"].tolist() == ["stop", "length", "abort", "stop"]
    check(batch)


def test_padding_goes_to_the_longest_response_of_this_batch_only() -> None:
    long, short = (
        to_batch(prompts(), [[rollout_output("a", 0, t)], [rollout_output("b", 0, "x")]], 0) for t in ("wxyz", "x")
    )
    assert long.batch["responses"].shape == (2, 5)
    assert short.batch["responses"].shape == (2, 2)


def test_a_batch_of_empty_responses_still_has_a_column() -> None:
    empty = {"token_ids": [], "log_probs": []}
    batch = to_batch(prompts(), [[rollout_output("a", 0, "", **empty)], [rollout_output("b", 0, "", **empty)]], 0)
    assert batch.batch["response_mask"].tolist() == [[0], [0]]


def test_groups_of_different_size_are_refused_even_when_their_number_fits() -> None:
    # three prompts with 2 + 1 + 3 responses are six rows, as three groups of two would be
    three = DataProto.concat([prompts(), prompts()[:1]])
    groups = [[rollout_output("u", index, "x") for index in range(size)] for size in (2, 1, 3)]
    with pytest.raises(ValueError, match=r"\[2, 1, 3\]"):
        to_batch(three, groups, 0)
