# SPDX-License-Identifier: Apache-2.0
"""The section `algorithm.rollout_correction` arrives in the loss only where it is computed there."""

from __future__ import annotations

from tests.helpers.configs import build
from verl.algorithms.rollout_correction import CorrectionSettings
from verl.config.algorithm import RolloutCorrectionConfig
from verl.workers.correction_specs import correction_settings
from verl.workers.engine_specs import policy_update_spec

SECTION = "algorithm.rollout_correction"


def test_every_key_arrives() -> None:
    config = RolloutCorrectionConfig(rollout_is="sequence", rollout_is_threshold=3.0, mask_low=0.2, mask_high=4.0)
    assert correction_settings(config) == CorrectionSettings("sequence", 3.0, 0.2, 4.0)
    assert not correction_settings(RolloutCorrectionConfig()).is_on


def test_only_a_bypass_makes_weights_in_the_loss() -> None:
    token = (f"{SECTION}.rollout_is=token", f"{SECTION}.rollout_is_threshold=4")
    assert policy_update_spec(build(*token), 1).live_correction is None
    bypassed = policy_update_spec(build(*token, f"{SECTION}.bypass_old_log_probs=True"), 1)
    assert bypassed.live_correction == CorrectionSettings("token", 4.0)
