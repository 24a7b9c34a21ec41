# SPDX-License-Identifier: Apache-2.0
"""Section `rollout.sglang`: SGLang servers, and where their environment is. Does not know the rest of the rollout."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl.config.fields import free_mapping, path_field

PYTHON_VARIABLE = "VERL_SGLANG_PYTHON"
SETUP_SCRIPT = "scripts/setup_sglang_env.sh"
_BESIDE_THE_PACKAGE = Path(__file__).resolve().parents[2] / ".venv-sglang" / "bin" / "python"


@dataclass(frozen=True, kw_only=True)
class SGLangConfig:
    """SGLang servers (`rollout.name=sglang`), which live in an environment of their own (docs/sglang.md)."""

    python: str | None = path_field()
    """Interpreter of that environment; null = the environment variable `VERL_SGLANG_PYTHON`, else
    `.venv-sglang/bin/python` beside the package, where `scripts/setup_sglang_env.sh` makes it."""
    urls: tuple[str, ...] = ()
    """Running servers to join instead of starting some, e.g. `[http://node7:30000]`; one rollout server for each."""
    server_args: Mapping[str, Any] = free_mapping()
    """Further launch arguments of started servers, e.g. `{attention_backend: fa3}`; true = a flag without a value."""
    env: Mapping[str, Any] = free_mapping()
    """Further environment variables of started servers."""

    @property
    def interpreter(self) -> str:
        """Interpreter in force, whether it is there or not."""
        return self.python or os.environ.get(PYTHON_VARIABLE) or str(_BESIDE_THE_PACKAGE)
