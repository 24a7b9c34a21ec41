# SPDX-License-Identifier: Apache-2.0
"""GRPO post-training with process rewards. Importing this package loads neither torch nor Ray."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from verl.protocol import DataProto

__version__ = "0.1.0"
__all__ = ["DataProto", "__version__"]


def __getattr__(name: str) -> Any:
    """Load `DataProto` (and torch with it) only when somebody asks for it."""
    if name == "DataProto":
        return importlib.import_module("verl.protocol").DataProto
    raise AttributeError(f"module 'verl' has no attribute {name!r}")
