# SPDX-License-Identifier: Apache-2.0
"""Rows of several inputs put together."""

from __future__ import annotations

import numpy as np
import pytest

from verl.rewards.prm.types import PRMInput, PRMPlan, ScoreRequest

PLAN = PRMPlan((PRMInput([1, 2, 3], np.array([1, 2])), PRMInput([4, 5], np.array([1]), 2)), ("windowed",))


def test_gather_keeps_order_and_flags():
    answer = PLAN.gather([np.array([[0.0, 1.0], [2.0, 3.0]]), np.array([[4.0, 5.0]])])
    assert answer.logits.tolist() == [[0, 1], [2, 3], [4, 5]] and answer.logits.dtype == np.float32
    assert answer.flags == ("windowed",)
    assert PLAN.num_tokens == 5


def test_gather_refuses_another_number_of_rows():
    with pytest.raises(ValueError, match="for 2 reasoning steps"):
        PLAN.gather([np.zeros((1, 2)), np.zeros((1, 2))])


def test_nothing_to_score_gives_no_rows():
    assert PRMPlan(()).gather([]).logits.shape == (0, 2)


def test_work_is_measured_in_tokens_and_estimated_where_they_are_unknown():
    assert ScoreRequest("r", "12345678", ("1234", "5")).work_tokens == 2 + 2
    assert ScoreRequest("r", "12345678", ("1234", "5"), num_tokens=9).work_tokens == 2 + 9
    assert ScoreRequest("r", "", (), num_tokens=0).work_tokens == 0
