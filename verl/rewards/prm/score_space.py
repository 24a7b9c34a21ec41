# SPDX-License-Identifier: Apache-2.0
"""From a PRM's two logits to one step score. Numbers only."""

from __future__ import annotations

import numpy as np

SCORE_SPACES = ("prob", "signed", "logit_diff")
LOGIT_DIFF_CLIP = 10.0
"""Limit of `logit_diff`: beyond it a probability is within 5e-5 of 0 or 1, and differences say nothing more."""


def to_score(logits: np.ndarray, score_space: str) -> np.ndarray:
    """Turn logits into step scores, in float32, by position (a probability of exactly 0 or 1 is a score like any).

    Args:
        logits: [K, 2], (wrong, right).
        score_space: `prob` p = softmax(logits)[1], in [0, 1]; `signed` 2 p - 1, in [-1, 1]; `logit_diff`
            right - wrong, cut at +-10 (keeps apart what saturates near p = 1).

    Returns:
        [K] float32; NaN where a logit is NaN.

    Raises:
        ValueError: The space is unknown.
    """
    logits = np.asarray(logits, dtype=np.float32).reshape(-1, 2)
    difference = logits[:, 1] - logits[:, 0]
    if score_space == "prob":
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        return weights[:, 1] / weights.sum(axis=1)
    if score_space == "signed":
        return np.tanh(difference * np.float32(0.5))
    if score_space == "logit_diff":
        return np.clip(difference, -LOGIT_DIFF_CLIP, LOGIT_DIFF_CLIP).astype(np.float32)
    raise ValueError(f"score_space={score_space!r}: must be one of {', '.join(SCORE_SPACES)}")
