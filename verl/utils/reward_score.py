# SPDX-License-Identifier: Apache-2.0
"""The name verl's users import for the shipped rule scores; the code lives in `verl.rewards.scores`."""

from verl.rewards.scores.registry import default_compute_score

__all__ = ["default_compute_score"]
