# SPDX-License-Identifier: Apache-2.0
"""The mathematics of training as pure functions of tensors. No batch type, no Ray and no config tree in here.

Importing the package fills the registries with the estimators and losses that ship with it.
"""

from verl.algorithms import (
    gdpo,
    grpo,
    grpo_delta,
    grpo_minform,
    grpo_ps,
    opo,
    papo,
    prof,
    reinforce_plus_plus,
    remax,
    rloo,
)
from verl.algorithms.aggregation import LossDenominator, agg_loss, count_loss_terms
from verl.algorithms.inputs import AdvantageInputs, EstimatorOptions, group_numbers, pad_steps
from verl.algorithms.kl import kl_in_reward, kl_penalty
from verl.algorithms.log_probs import log_probs_from_hidden, log_probs_from_logits
from verl.algorithms.policy_losses import ClipSettings, PolicyLoss, get_policy_loss_fn
from verl.algorithms.prof import ProfSettings, prof_filter
from verl.algorithms.registry import (
    AdvantageEstimator,
    adv_estimator_columns,
    get_adv_estimator_fn,
    register_adv_est,
    register_policy_loss,
)

__all__ = [
    "AdvantageEstimator",
    "AdvantageInputs",
    "ClipSettings",
    "EstimatorOptions",
    "LossDenominator",
    "PolicyLoss",
    "ProfSettings",
    "adv_estimator_columns",
    "agg_loss",
    "count_loss_terms",
    "gdpo",
    "get_adv_estimator_fn",
    "get_policy_loss_fn",
    "group_numbers",
    "grpo",
    "grpo_delta",
    "grpo_minform",
    "grpo_ps",
    "kl_in_reward",
    "kl_penalty",
    "log_probs_from_hidden",
    "log_probs_from_logits",
    "opo",
    "pad_steps",
    "papo",
    "prof",
    "prof_filter",
    "register_adv_est",
    "register_policy_loss",
    "reinforce_plus_plus",
    "remax",
    "rloo",
]
