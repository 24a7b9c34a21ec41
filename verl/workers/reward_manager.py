# SPDX-License-Identifier: Apache-2.0
"""The names verl's users import for reward managers; the code lives in `verl.rewards`. Nothing inside imports this."""

from verl.rewards.dapo import DAPORewardManager
from verl.rewards.manager import AbstractRewardManager, get_reward_manager_cls, register
from verl.rewards.naive import NaiveRewardManager

__all__ = [
    "AbstractRewardManager",
    "DAPORewardManager",
    "NaiveRewardManager",
    "get_reward_manager_cls",
    "register",
]
