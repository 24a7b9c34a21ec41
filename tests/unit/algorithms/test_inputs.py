# SPDX-License-Identifier: Apache-2.0
"""What estimators may read: shapes are checked, ragged steps are padded, groups are numbered."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from verl.algorithms.inputs import AdvantageInputs, group_numbers, pad_steps


def inputs_with(**changes: object) -> AdvantageInputs:
    fields = {
        "token_level_rewards": torch.zeros(2, 3),
        "response_mask": torch.ones(2, 3, dtype=torch.int64),
        "group_index": torch.tensor([0, 0]),
    }
    return AdvantageInputs(**{**fields, **changes})


def test_groups_are_numbered_in_order_of_appearance():
    assert group_numbers(np.array(["b", "a", "b", "c", "a"], dtype=object)).tolist() == [0, 1, 0, 2, 1]
    assert group_numbers([]).tolist() == []


def test_ragged_steps_are_padded_to_the_longest_row():
    scores, ends, mask = pad_steps(
        [np.array([0.5, 1.0], np.float32), np.zeros(0, np.float32), np.array([0.25], np.float32)],
        [np.array([1, 4]), np.zeros(0, np.int64), np.array([2])],
    )
    assert scores.tolist() == [[0.5, 1.0], [0, 0], [0.25, 0]] and scores.dtype == torch.float32
    assert ends.tolist() == [[1, 4], [0, 0], [2, 0]] and ends.dtype == torch.int64
    assert mask.tolist() == [[True, True], [False, False], [True, False]]


def test_rows_without_any_step_still_give_a_column():
    scores, _, mask = pad_steps([np.zeros(0, np.float32)] * 2, [np.zeros(0, np.int64)] * 2)
    assert scores.shape == (2, 1) and not mask.any()


def test_scores_without_their_ends_are_refused():
    with pytest.raises(ValueError, match="number of steps"):
        pad_steps([np.zeros(2, np.float32)], [np.zeros(1, np.int64)])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"token_level_rewards": torch.zeros(2)}, r"expected \[S, R\]"),
        ({"response_mask": torch.ones(2, 4)}, r"response_mask has shape \(2, 4\), expected \(2, 3\)"),
        ({"group_index": torch.zeros(3)}, "group_index"),
        ({"rule_scores": torch.zeros(2, 1)}, "rule_scores"),
        ({"step_scores": torch.zeros(2, 2)}, "go together"),
        ({"step_ends": torch.zeros(2, 2)}, "go together"),
    ],
)
def test_disagreeing_shapes_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        inputs_with(**changes)


def step_columns(**changes: torch.Tensor) -> dict[str, torch.Tensor]:
    columns = {
        "step_scores": torch.tensor([[0.5, 0.0], [1.0, 0.0]]),
        "step_ends": torch.tensor([[2, 0], [1, 0]]),
        "step_mask": torch.tensor([[True, False], [True, False]]),
    }
    return columns | changes


def test_what_the_step_mask_hides_may_be_anything():
    hidden = {
        "step_scores": torch.tensor([[0.5, float("nan")], [1.0, 0.0]]),
        "step_ends": torch.tensor([[2, 99], [1, -7]]),
    }
    assert inputs_with(**step_columns(**hidden)).step_mask.sum() == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step_ends": torch.tensor([[3, 0], [1, 0]])}, r"1\.\.3 lie outside the 3 response tokens"),
        ({"step_ends": torch.tensor([[-1, 0], [1, 0]])}, "lie outside"),
        ({"step_scores": torch.tensor([[float("nan"), 0.0], [1.0, 0.0]])}, "NaN"),
        ({"step_mask": torch.ones(2, 3, dtype=torch.bool)}, "step_mask has shape"),
    ],
)
def test_impossible_steps_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        inputs_with(**step_columns(**changes))


def test_require_names_what_is_missing():
    with pytest.raises(ValueError, match=r"\['rule_scores'\]"):
        inputs_with(**step_columns()).require("step_scores", "rule_scores")


def test_steps_stand_at_the_left_in_the_order_of_their_ends():
    with pytest.raises(ValueError, match="gap"):
        inputs_with(**step_columns(step_mask=torch.tensor([[False, True], [True, False]])))
    both = torch.ones(2, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="go back"):
        inputs_with(**step_columns(step_mask=both, step_ends=torch.tensor([[2, 1], [1, 1]])))
    inputs_with(**step_columns(step_mask=both, step_ends=torch.tensor([[0, 1], [1, 1]])))


def test_rows_are_left_out_of_every_tensor():
    inputs = inputs_with(**step_columns(), rule_scores=torch.tensor([1.0, 2.0]), beta=0.3)
    second = inputs.only(torch.tensor([False, True]))
    assert second.rule_scores.tolist() == [2.0] and second.step_scores.tolist() == [[1.0, 0.0]]
    assert second.response_mask.shape == (1, 3) and second.beta == 0.3 and second.is_correct is None
