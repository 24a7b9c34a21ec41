# SPDX-License-Identifier: Apache-2.0
"""Step scores from logits: against torch's softmax, and safe at the ends."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from verl.rewards.prm.score_space import to_score

LOGITS = np.array([[0.3, 1.2], [2.0, -1.0], [-40.0, 60.0], [90.0, -90.0], [0.0, 0.0]], dtype=np.float32)


def test_prob_is_torchs_softmax_of_class_one():
    expected = torch.softmax(torch.from_numpy(LOGITS), -1)[:, 1].numpy()
    np.testing.assert_allclose(to_score(LOGITS, "prob"), expected, rtol=1e-6, atol=1e-12)


def test_exact_zero_and_one_keep_their_rows():
    scores = to_score(LOGITS, "prob")
    assert scores.shape == (5,) and scores[2] == 1.0 and scores[3] < 1e-38


def test_signed_is_twice_the_probability_minus_one():
    np.testing.assert_allclose(to_score(LOGITS, "signed"), 2 * to_score(LOGITS, "prob") - 1, atol=1e-6)


def test_logit_diff_is_clipped():
    np.testing.assert_allclose(to_score(LOGITS, "logit_diff"), [0.9, -3.0, 10.0, -10.0, 0.0], rtol=1e-6)


@pytest.mark.parametrize("space", ["prob", "signed", "logit_diff"])
def test_float32_out_of_anything_none_for_none_and_nan_stays(space):
    assert to_score(np.zeros((0, 2)), space).shape == (0,)
    scores = to_score(LOGITS.astype(np.float64), space)
    assert scores.dtype == np.float32
    assert np.isnan(to_score(np.array([[np.nan, 0.0]]), space)).all()


def test_unknown_space():
    with pytest.raises(ValueError, match="score_space='odds'"):
        to_score(LOGITS, "odds")
