# SPDX-License-Identifier: Apache-2.0
"""Section `actor_rollout_ref.model`: which policy is trained, and how much of it.

Does not know how it is sharded or served.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from verl.config.fields import free_mapping, limited, path_field


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
    enable_activation_offload: bool = False
    """Keep the layers' inputs, which gradient checkpointing saves, in CPU memory until the backward pass."""
    lora_rank: int = limited(0, low=0)
    """Train low-rank adapters (LoRA) of this rank beside frozen weights; 0 = train all weights."""
    lora_alpha: int = limited(16, low=1)
    """LoRA's product of adapters is scaled by this over `lora_rank`."""
    target_modules: tuple[str, ...] = ("all-linear",)
    """Layers that get adapters: ends of module names such as [q_proj,v_proj], or all-linear (all but the head)."""
    override_config: Mapping[str, Any] = free_mapping()
    """Entries of the model's `config.json` to replace where the model is trained, by the names of the installed
    transformers, e.g. `{attention_dropout: 0.1}`. vLLM's are `rollout.engine_kwargs.hf_overrides`."""
    external_lib: str | None = None
    """Python module imported in every worker before the model is built (registers own model classes)."""
    custom_chat_template: str | None = None
    """Jinja text that replaces the tokenizer's chat template; null = the tokenizer's own."""
