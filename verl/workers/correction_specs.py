# SPDX-License-Identifier: Apache-2.0
"""From the user's keys to the settings of the rollout correction. Pure translation."""

from __future__ import annotations

from verl.algorithms.rollout_correction import CorrectionSettings
from verl.config.algorithm import RolloutCorrectionConfig


def correction_settings(correction: RolloutCorrectionConfig) -> CorrectionSettings:
    """What is done with the ratio of trainer over sampler.

    Args:
        correction: The section `algorithm.rollout_correction`.

    Returns:
        The settings.
    """
    return CorrectionSettings(
        level=correction.rollout_is or "none",
        cap=correction.rollout_is_threshold,
        mask_low=correction.mask_low,
        mask_high=correction.mask_high,
    )
