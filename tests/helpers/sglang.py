# SPDX-License-Identifier: Apache-2.0
"""Where the tests find SGLang: the real one in its own environment, and a small server that only looks like it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from verl.config.sglang import SETUP_SCRIPT, SGLangConfig
from verl.rollout.base import ServerSettings

STUBS = Path(__file__).with_name("sglang_stubs")
DOUBLE = Path(__file__).with_name("sglang_double")


def real_environment() -> dict[str, str]:
    """Environment variables of a real server; without a GPU its compiled packages are replaced by ones that refuse."""
    return {} if torch.cuda.is_available() else {"PYTHONPATH": str(STUBS)}


def real_interpreter() -> str:
    """Interpreter of SGLang's environment; skips where there is none."""
    interpreter = SGLangConfig().interpreter
    if not Path(interpreter).is_file():
        pytest.skip(f"there is no SGLang environment; make it with: bash {SETUP_SCRIPT}")
    return interpreter


def real_settings(**changes: Any) -> ServerSettings:
    """Settings of a real server; skips where SGLang is not installed."""
    settings: dict[str, Any] = {"python": real_interpreter(), "env": real_environment(), "start_timeout_s": 300}
    return ServerSettings(**(settings | changes))


def double_settings(behaviour: str = "", **changes: Any) -> ServerSettings:
    """Settings of the server that looks like SGLang, see `sglang_double`; `behaviour` is what goes wrong with it."""
    environment = {"PYTHONPATH": str(DOUBLE), "DOUBLE_BEHAVIOUR": behaviour}
    settings: dict[str, Any] = {"python": sys.executable, "env": environment, "start_timeout_s": 60}
    return ServerSettings(**(settings | changes))
