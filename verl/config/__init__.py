# SPDX-License-Identifier: Apache-2.0
"""Typed, frozen configuration of every entry point. Imports neither torch nor Ray nor any model library.

`verl.config.hydra` (not imported here) is the door: it turns a command line into one of these roots.
"""

from __future__ import annotations

from verl.config.root import PPOTrainerConfig
from verl.config.sft import PRMTrainerConfig, SFTTrainerConfig

__all__ = ["PPOTrainerConfig", "PRMTrainerConfig", "SFTTrainerConfig"]
