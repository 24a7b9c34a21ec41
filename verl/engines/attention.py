# SPDX-License-Identifier: Apache-2.0
"""Causal attention over packed sequences, registered with transformers under the name `packed`.

The layout of the sequences travels as a keyword of the model's forward, not as global state: gradient checkpointing
runs a layer again from another thread, and two engines may share a process. No mask is ever built.

On CUDA in 16 bit the kernel is torch's own variable-length attention. Elsewhere the packed rows are laid out as
[N, longest] for scaled-dot-product attention: causal order alone keeps right padding out of every real token's sight.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface

from verl.engines.packing import PackedSequences
from verl.utils.errors import UserError

IMPLEMENTATION = "packed"

# Features that change the attention of some model families and that this file does not compute.
_UNSUPPORTED = ("softcap", "s_aux", "position_bias")
# torch 2.13 can share key and value heads in the kernel; torch 2.11 has no such switch.
_VARLEN_SHARES_HEADS = "enable_gqa" in inspect.signature(varlen_attn).parameters


@dataclass(frozen=True)
class SequenceLayout:
    """Where the packed sequences lie.

    Args:
        cu_seqlens: [N+1] int32, borders of the sequences.
        max_seqlen: Longest sequence, tokens.
        padded_index: [T] int64: each token's place in a flattened [N, max_seqlen] grid.
    """

    cu_seqlens: torch.Tensor
    max_seqlen: int
    padded_index: torch.Tensor

    @classmethod
    def of(cls, packed: PackedSequences) -> SequenceLayout:
        """Derive the layout once per forward pass; every layer reuses it.

        Args:
            packed: The sequences.
        """
        lengths = packed.cu_seqlens.diff().long()
        starts = torch.arange(packed.num_sequences, device=lengths.device) * packed.max_seqlen
        index = torch.repeat_interleave(starts, lengths) + packed.position_ids
        return cls(packed.cu_seqlens, packed.max_seqlen, index)

    @property
    def num_sequences(self) -> int:
        """N."""
        return self.cu_seqlens.shape[0] - 1


def uses_varlen(device_type: str, dtype: torch.dtype) -> bool:
    """Say whether attention runs without any padding (torch's varlen kernel exists for CUDA and 16 bit only).

    Args:
        device_type: `cuda` or `cpu`.
        dtype: Dtype of queries and keys.
    """
    return device_type == "cuda" and dtype in (torch.bfloat16, torch.float16)


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: object,
) -> tuple[torch.Tensor, None]:
    """Attend within each packed sequence; called by every attention layer of a transformers model.

    Args:
        module: The attention layer (unused, part of transformers' signature).
        query: [1, H, T, D].
        key: [1, H_kv, T, D].
        value: [1, H_kv, T, D].
        attention_mask: Unused; none is built for this implementation.
        **kwargs: `layout` (a `SequenceLayout`) from the model's forward, `scaling` and `sliding_window` from the layer.

    Returns:
        ([1, T, H, D], None), as transformers expects.

    Raises:
        UserError: The model needs a kind of attention that is not computed here.
    """
    layout = kwargs.get("layout")
    if not isinstance(layout, SequenceLayout):
        raise TypeError("packed attention needs layout=SequenceLayout in the model's forward")
    for name in _UNSUPPORTED:
        if kwargs.get(name) is not None:
            raise UserError(f"{type(module).__name__} uses {name!r} in attention, which the engines do not support")
    scaling, window = kwargs.get("scaling"), kwargs.get("sliding_window")
    attend = attend_varlen if uses_varlen(query.device.type, query.dtype) else attend_padded
    return attend(query, key, value, layout, scaling, window), None  # type: ignore[arg-type]


def attend_varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: SequenceLayout,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    """Attend with torch's variable-length kernel: no padding, no mask.

    Args:
        query: [1, H, T, D].
        key: [1, H_kv, T, D].
        value: [1, H_kv, T, D].
        layout: Where the sequences lie.
        scaling: Factor of the scores; None for 1 / sqrt(D).
        window: Tokens that a token sees, itself included; None for all before it.

    Returns:
        [1, T, H, D].
    """
    q, k, v = (x[0].transpose(0, 1).contiguous() for x in (query, key, value))
    shares: dict[str, Any] = {"enable_gqa": True} if _VARLEN_SHARES_HEADS else {}
    if not shares and q.shape[1] != k.shape[1]:
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    borders, longest = layout.cu_seqlens, layout.max_seqlen
    # transformers counts the token itself in a window of w; the kernel counts the tokens to its left.
    window_size = (-1 if window is None else window - 1, 0)
    attended: Any = varlen_attn(
        q, k, v, borders, borders, longest, longest, scale=scaling, window_size=window_size, **shares
    )
    return attended[None]


def attend_padded(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: SequenceLayout,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    """Attend on a grid of [N, longest]: causal order hides the padding on the right.

    Args:
        query: [1, H, T, D].
        key: [1, H_kv, T, D].
        value: [1, H_kv, T, D].
        layout: Where the sequences lie.
        scaling: Factor of the scores; None for 1 / sqrt(D).
        window: Tokens that a token sees, itself included; None for all before it.

    Returns:
        [1, T, H, D].

    Raises:
        UserError: The window is shorter than the longest sequence.
    """
    if window is not None and window < layout.max_seqlen:
        raise UserError(
            f"sliding-window attention ({window} tokens) over longer sequences ({layout.max_seqlen}) needs CUDA and "
            "bfloat16: shorten the sequences or run on a GPU"
        )
    n, longest = layout.num_sequences, layout.max_seqlen

    # On the CPU the backward pass of this kernel is three times slower in 16 bit than in float32.
    dtype = torch.float32 if query.device.type == "cpu" else query.dtype

    def spread(x: torch.Tensor) -> torch.Tensor:
        heads, dim = x.shape[1], x.shape[3]
        grid = x.new_zeros(n * longest, heads, dim, dtype=dtype)
        grid = grid.index_copy(0, layout.padded_index, x[0].transpose(0, 1).to(dtype))
        return grid.view(n, longest, heads, dim).transpose(1, 2)

    q, k, v = spread(query), spread(key), spread(value)
    shares = q.shape[1] != k.shape[1]
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=shares)
    flat = out.transpose(1, 2).reshape(n * longest, q.shape[1], v.shape[3])
    return flat.index_select(0, layout.padded_index)[None].to(query.dtype)


AttentionInterface.register(IMPLEMENTATION, packed_attention)
