# SPDX-License-Identifier: Apache-2.0
"""Process reward models: how reasoning steps are found, shown to a PRM, scored and checked. Loads nothing by itself."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from verl.rewards.prm.api import PRMScorer, PRMScores, ScoringSettings

__all__ = ["PRMScorer", "PRMScores", "ScoringSettings"]


def __getattr__(name: str) -> Any:
    """Load the interface for scripts (and torch with it) only when somebody asks for it."""
    if name in __all__:
        return getattr(importlib.import_module("verl.rewards.prm.api"), name)
    raise AttributeError(f"module 'verl.rewards.prm' has no attribute {name!r}")
