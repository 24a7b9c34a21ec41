# SPDX-License-Identifier: Apache-2.0
"""Qwen2 weights by transformers' names and by Megatron's, both ways and exactly. Pure functions: no rank, no group.

HF            q_proj k_proj v_proj          gate_proj up_proj        embed_tokens, o_proj, norms, ...
Megatron      linear_qkv, by key-value      linear_fc1, [2, ffn, h]  the same matrices by other names
              group: [g, (m + 2) d, h]
of one rank   groups of rows                both halves' rows        rows of vocabulary; columns of o_proj, down_proj
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from verl.utils.errors import UserError

EMBEDDING = "embedding.word_embeddings.weight"
OUTPUT = "output_layer.weight"
FINAL_NORM = "decoder.final_layernorm.weight"
_LAYER = re.compile(r"decoder\.layers\.(\d+)\.(.+)")
# Megatron's name in a layer -> transformers' names.
_IN_LAYER: dict[str, tuple[str, ...]] = {
    "input_layernorm.weight": ("input_layernorm.weight",),
    "self_attention.linear_qkv.weight": tuple(f"self_attn.{x}_proj.weight" for x in "qkv"),
    "self_attention.linear_qkv.bias": tuple(f"self_attn.{x}_proj.bias" for x in "qkv"),
    "self_attention.linear_proj.weight": ("self_attn.o_proj.weight",),
    "pre_mlp_layernorm.weight": ("post_attention_layernorm.weight",),
    "mlp.linear_fc1.weight": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    "mlp.linear_fc2.weight": ("mlp.down_proj.weight",),
}
_AROUND = {EMBEDDING: "model.embed_tokens.weight", FINAL_NORM: "model.norm.weight", OUTPUT: "lm_head.weight"}


@dataclass(frozen=True)
class Qwen2Shape:
    """The numbers of a Qwen2 model that decide its weights and its forward pass.

    Args:
        layers: Transformer layers.
        hidden: Width of the residual stream.
        heads: Query heads.
        kv_heads: Key and value heads.
        head_dim: Width of one head.
        mlp: Width of the gated MLP.
        vocab: Rows of the embedding.
        is_tied: Whether the output layer shares the embedding.
        norm_eps: Added to mean squares.
        rope_theta: Base of the rotary frequencies.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocab: int
    is_tied: bool
    norm_eps: float
    rope_theta: float

    @classmethod
    def of(cls, config: Any, path: str, key: str) -> Qwen2Shape:
        """Read a transformers config.

        Args:
            config: What `config.json` says.
            path: Where it lies, for messages.
            key: The configuration key of the path.

        Raises:
            UserError: Another family, or a Qwen2 with features that this engine does not compute.
        """
        mend = "Use actor_rollout_ref.actor.strategy=fsdp2, which trains any causal language model of transformers"
        if config.model_type != "qwen2":
            allowed = f"holds a {config.model_type!r} model; strategy=megatron trains Qwen2 (and Qwen2.5) models"
            raise UserError.for_key(key, path, allowed, mend)
        rope = dict(getattr(config, "rope_parameters", None) or {})
        if rope.get("rope_type", "default") != "default":
            allowed = f"scales rotary positions by {rope['rope_type']!r}, which strategy=megatron does not compute"
            raise UserError.for_key(key, path, allowed, mend)
        if getattr(config, "use_sliding_window", False):
            allowed = "uses sliding-window attention, which strategy=megatron does not compute"
            raise UserError.for_key(key, path, allowed, mend)
        return cls(
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            mlp=config.intermediate_size,
            vocab=config.vocab_size,
            is_tied=bool(config.tie_word_embeddings),
            norm_eps=config.rms_norm_eps,
            rope_theta=float(rope.get("rope_theta", 10000.0)),
        )

    def padded_vocab(self, tensor_parallel: int) -> int:
        """Rows of the embedding over all ranks, equally many on each; rows behind the vocabulary are zero."""
        return -(-self.vocab // tensor_parallel) * tensor_parallel

    def parameters(self) -> list[str]:
        """Megatron's names of the whole model, in order; a tied output layer is not among them."""
        layers = [f"decoder.layers.{number}.{name}" for number in range(self.layers) for name in _IN_LAYER]
        return [EMBEDDING, *layers, FINAL_NORM, *([] if self.is_tied else [OUTPUT])]

    def full_shape(self, name: str, tensor_parallel: int) -> tuple[int, ...]:
        """Shape of a weight of all ranks together, as `merge` makes it and `split` takes it."""
        kind = _kind(name)
        if kind in (EMBEDDING, OUTPUT):
            return (self.padded_vocab(tensor_parallel), self.hidden)
        rows = (self.heads + 2 * self.kv_heads) * self.head_dim
        shapes = {
            "self_attention.linear_qkv.weight": (rows, self.hidden),
            "self_attention.linear_qkv.bias": (rows,),
            "self_attention.linear_proj.weight": (self.hidden, self.heads * self.head_dim),
            "mlp.linear_fc1.weight": (2, self.mlp, self.hidden),
            "mlp.linear_fc2.weight": (self.hidden, self.mlp),
        }
        return shapes.get(kind, (self.hidden,))


def _kind(name: str) -> str:
    found = _LAYER.fullmatch(name)
    return found[2] if found else name


def layer_of(name: str) -> int | None:
    """Number of the layer that a Megatron name belongs to, counted from 0; None for weights outside the layers."""
    found = _LAYER.fullmatch(name)
    return int(found[1]) if found else None


def shift_layer(name: str, offset: int) -> str:
    """Count a name's layer from another first layer; other names stay."""
    found = _LAYER.fullmatch(name)
    return f"decoder.layers.{int(found[1]) + offset}.{found[2]}" if found else name


def hf_names(name: str) -> tuple[str, ...]:
    """Name the transformers weights that one Megatron weight holds.

    Args:
        name: Of the whole model.
    """
    found = _LAYER.fullmatch(name)
    if found is None:
        return (_AROUND[name],)
    return tuple(f"model.layers.{found[1]}.{each}" for each in _IN_LAYER[found[2]])


def merge(name: str, weights: Mapping[str, torch.Tensor], shape: Qwen2Shape, tensor_parallel: int) -> torch.Tensor:
    """Put transformers weights together as one Megatron weight of all ranks.

    Args:
        name: Of the whole model.
        weights: By transformers' names.
        shape: Sizes of the model.
        tensor_parallel: Ranks that will share it, which decides the padding of the vocabulary.

    Returns:
        The weight, see `Qwen2Shape.full_shape`.
    """
    parts = [weights[each] for each in hf_names(name)]
    kind = _kind(name)
    if "linear_qkv" in kind:
        grouped = [part.unflatten(0, (shape.kv_heads, -1)) for part in parts]
        return torch.cat(grouped, dim=1).flatten(0, 1)
    if kind == "mlp.linear_fc1.weight":
        return torch.stack(parts)
    if kind in (EMBEDDING, OUTPUT):
        padding = shape.padded_vocab(tensor_parallel) - len(parts[0])
        return torch.nn.functional.pad(parts[0], (0, 0, 0, padding))
    return parts[0]


def separate(name: str, full: torch.Tensor, shape: Qwen2Shape) -> list[tuple[str, torch.Tensor]]:
    """Undo `merge`: one Megatron weight of all ranks as transformers weights.

    Args:
        name: Of the whole model.
        full: The weight.
        shape: Sizes of the model.

    Returns:
        Names and weights, each its own memory or a part of `full`.
    """
    names, kind = hf_names(name), _kind(name)
    if "linear_qkv" in kind:
        share = shape.heads // shape.kv_heads
        widths = [share * shape.head_dim, shape.head_dim, shape.head_dim]
        parts = full.unflatten(0, (shape.kv_heads, -1)).split(widths, dim=1)
        return [(each, part.flatten(0, 1)) for each, part in zip(names, parts, strict=True)]
    if kind == "mlp.linear_fc1.weight":
        return list(zip(names, full.unbind(0), strict=True))
    if kind in (EMBEDDING, OUTPUT):
        return [(names[0], full[: shape.vocab])]
    return [(names[0], full)]


def split_dim(name: str) -> int | None:
    """Say along which dimension tensor-parallel ranks split a weight; None where each holds all of it.

    Args:
        name: Megatron's, of any layer numbering.

    Returns:
        Dimension of the rank's own tensor.
    """
    kind = _kind(name)
    if kind in ("self_attention.linear_proj.weight", "mlp.linear_fc2.weight"):
        return 1
    return 0 if kind in (EMBEDDING, OUTPUT) or "linear_" in kind else None


def split(name: str, full: torch.Tensor, size: int, rank: int) -> torch.Tensor:
    """Take one tensor-parallel rank's part.

    Args:
        name: Megatron's.
        full: The weight of all ranks.
        size: Ranks.
        rank: Which.

    Returns:
        The rank's tensor, in the shape of its parameter.
    """
    if _kind(name) == "mlp.linear_fc1.weight":
        return full.chunk(size, dim=1)[rank].flatten(0, 1)
    dim = split_dim(name)
    return full if dim is None else full.chunk(size, dim=dim)[rank]


def join(name: str, parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Undo `split`.

    Args:
        name: Megatron's.
        parts: Of every rank, in order.

    Returns:
        The weight of all ranks.
    """
    if _kind(name) == "mlp.linear_fc1.weight":
        return torch.cat([part.unflatten(0, (2, -1)) for part in parts], dim=1)
    dim = split_dim(name)
    return parts[0] if dim is None else torch.cat(list(parts), dim=dim)
