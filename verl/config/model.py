# SPDX-License-Identifier: Apache-2.0
"""Section `actor_rollout_ref.model`: which policy is trained. Does not know how it is sharded or served."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from verl.config.fields import free_mapping, path_field


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The policy's weights, tokenizer and how its forward pass is run."""

    path: str = path_field("")
    """Local folder or hub id (`org/name`) of the policy in HF format. Required."""
    tokenizer_path: str | None = path_field()
    """Folder or hub id of the tokenizer; null = `path`."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model."""
    use_remove_padding: bool = True
    """Pack sequences without padding in forward passes; off = padded micro-batches (slower, for comparison)."""
    enable_gradient_checkpointing: bool = True
    """Recompute activations in the backward pass: less memory, about a third more compute."""
    override_config: Mapping[str, Any] = free_mapping()
    """Entries of the model's `config.json` to replace, e.g. `{rope_theta: 1000000}`."""
    external_lib: str | None = None
    """Python module imported in every worker before the model is built (registers own model classes)."""
    custom_chat_template: str | None = None
    """Jinja text that replaces the tokenizer's chat template; null = the tokenizer's own."""
