# SPDX-License-Identifier: Apache-2.0
"""The names verl's users import for rewards; the code lives in `verl.rewards`. Nothing inside imports this."""

from verl.rewards.loader import load_function, resolve_function
from verl.rewards.manager import get_reward_manager_cls
from verl.rewards.scores.registry import default_compute_score

__all__ = ["default_compute_score", "get_reward_manager_cls", "load_function", "resolve_function"]
