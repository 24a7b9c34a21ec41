# SPDX-License-Identifier: Apache-2.0
"""The names verl's users import for algorithms; the code lives in `verl.algorithms`. Nothing inside imports this."""

from verl.algorithms.aggregation import agg_loss
from verl.algorithms.kl import AdaptiveKLController, FixedKLController, kl_penalty
from verl.algorithms.policy_losses import get_policy_loss_fn
from verl.algorithms.registry import AdvantageEstimator, get_adv_estimator_fn, register_adv_est, register_policy_loss

__all__ = [
    "AdaptiveKLController",
    "AdvantageEstimator",
    "FixedKLController",
    "agg_loss",
    "get_adv_estimator_fn",
    "get_policy_loss_fn",
    "kl_penalty",
    "register_adv_est",
    "register_policy_loss",
]
