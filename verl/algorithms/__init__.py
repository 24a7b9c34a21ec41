# SPDX-License-Identifier: Apache-2.0
"""The mathematics of training as pure functions of tensors. No batch type, no Ray and no config tree in here.

Importing the package fills the registries with the estimators and losses that ship with it.
"""

from verl.algorithms import grpo, grpo_ps, policy_losses

__all__ = ["grpo", "grpo_ps", "policy_losses"]
