# SPDX-License-Identifier: Apache-2.0
"""A model's size, read from its `config.json` where that lies on this machine. Loads no model and asks no hub."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_FIELDS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")


@dataclass(frozen=True)
class ModelShape:
    """The numbers that decide a decoder's size (Llama and Qwen families: gated MLP, RMSNorm, grouped queries).

    Example:
        `ModelShape(hidden=3584, layers=28, heads=28, kv_heads=4, head_dim=128, mlp=18944, vocab=152064,
        tied=False, max_positions=32768)` has 7.6e9 parameters.
    """

    hidden: int
    """Width of the residual stream."""
    layers: int
    """Transformer layers."""
    heads: int
    """Query heads."""
    kv_heads: int
    """Key and value heads."""
    head_dim: int
    """Width of one head."""
    mlp: int
    """Width of the gated MLP."""
    vocab: int
    """Rows of the embedding."""
    tied: bool
    """Whether the output layer shares the embedding."""
    max_positions: int | None
    """Longest context, None if it is not stated or scaled. Unit: tokens."""
    family: str = ""
    """`model_type` of `config.json`."""

    @property
    def layer_params(self) -> int:
        """Parameters of one layer (biases are left out: below 0.1%)."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return attention + 3 * self.hidden * self.mlp + 2 * self.hidden

    @property
    def num_params(self) -> int:
        """Parameters of the model."""
        embeddings = self.vocab * self.hidden * (1 if self.tied else 2)
        return embeddings + self.layers * self.layer_params + self.hidden

    def adapter_params(self, rank: int, target_modules: Sequence[str]) -> int:
        """Parameters of low-rank adapters; names that are none of the seven projections are left out.

        Args:
            rank: Of the adapters.
            target_modules: Names of projections, or `all-linear`.
        """
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        both_sides = {
            "q_proj": self.hidden + queries,
            "k_proj": self.hidden + keys,
            "v_proj": self.hidden + keys,
            "o_proj": queries + self.hidden,
            "gate_proj": self.hidden + self.mlp,
            "up_proj": self.hidden + self.mlp,
            "down_proj": self.mlp + self.hidden,
        }
        names = both_sides if "all-linear" in target_modules else set(target_modules)
        return self.layers * rank * sum(size for name, size in both_sides.items() if name in names)

    def kv_bytes_per_token(self, bytes_per_number: int) -> int:
        """KV cache of one token over all layers, in bytes."""
        return 2 * self.layers * self.kv_heads * self.head_dim * bytes_per_number


def read_shape(path: str, overrides: Mapping[str, Any] | None = None) -> tuple[ModelShape | None, str]:
    """Read a model's shape.

    Args:
        path: Local folder, or hub id whose files may lie in the hub's cache on this machine.
        overrides: Entries of `config.json` that the user replaces.

    Returns:
        (shape, "") or (None, why it is unknown).
    """
    file = find_config(path)
    if file is None:
        return None, f"config.json of {path!r} is not on this machine"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return None, f"{file} cannot be read: {error}"
    if not isinstance(content, dict):
        return None, f"{file} is not a JSON object"
    content = {**content, **(overrides or {})}
    missing = [name for name in _FIELDS if not isinstance(content.get(name), int)]
    if missing:
        return None, f"{file} has no number for {', '.join(missing)}"
    return _shape(content), ""


def find_config(path: str) -> Path | None:
    """Find a model's `config.json` on this machine.

    Args:
        path: Local folder or hub id.

    Returns:
        The file, or None.
    """
    local = Path(path).expanduser() / "config.json"
    if local.is_file():
        return local
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    cache = Path(os.environ.get("HF_HUB_CACHE", str(home / "hub"))).expanduser()
    cached = sorted((cache / f"models--{path.replace('/', '--')}" / "snapshots").glob("*/config.json"))
    return cached[-1] if cached else None


def _shape(content: Mapping[str, Any]) -> ModelShape:
    heads = content["num_attention_heads"]
    return ModelShape(
        hidden=content["hidden_size"],
        layers=content["num_hidden_layers"],
        heads=heads,
        kv_heads=content.get("num_key_value_heads") or heads,
        head_dim=content.get("head_dim") or content["hidden_size"] // heads,
        mlp=content["intermediate_size"],
        vocab=content["vocab_size"],
        tied=bool(content.get("tie_word_embeddings", False)),
        max_positions=None if content.get("rope_scaling") else content.get("max_position_embeddings"),
        family=str(content.get("model_type", "")),
    )
