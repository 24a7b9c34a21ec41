# SPDX-License-Identifier: Apache-2.0
"""The names verl's users import for reward managers; the code lives in `verl.rewards`. Nothing inside imports this."""

from verl.rewards.batch import BatchRewardManager
from verl.rewards.dapo import DAPORewardManager
from verl.rewards.manager import AbstractRewardManager, get_reward_manager_cls, register
from verl.rewards.naive import NaiveRewardManager
from verl.rewards.prime import PrimeRewardManager
from verl.rewards.process import ProcessRewardManager

__all__ = [
    "AbstractRewardManager",
    "BatchRewardManager",
    "DAPORewardManager",
    "NaiveRewardManager",
    "PrimeRewardManager",
    "ProcessRewardManager",
    "get_reward_manager_cls",
    "register",
]
