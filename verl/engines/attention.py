# SPDX-License-Identifier: Apache-2.0
"""Causal attention over packed sequences, registered with transformers under the name `packed`.

The layout of the sequences travels as a keyword of the model's forward, not as global state: gradient checkpointing
runs a layer again from another thread, and two engines may share a process. No mask is ever built.

On CUDA in 16 bit the kernel is torch's own variable-length attention. Elsewhere sequences of nearly equal lengths are
laid out as [n, longest] for scaled-dot-product attention, one call for each such bucket: causal order alone keeps right
padding out of every real token's sight. Short sequences in bfloat16 on a CPU go through `product_attention` instead.
`benchmarks/cpu_attention.py` compares all of that with a mask and with one wide grid.

Under sequence parallelism a rank holds a slice of the tokens; around the kernel it trades tokens for heads.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface

from verl.engines import product_attention
from verl.engines.length_buckets import MAX_PADDING_SHARE, length_buckets
from verl.engines.packing import PackedSequences
from verl.engines.sequence_parallel import SequenceParallel
from verl.utils.errors import UserError

IMPLEMENTATION = "packed"

# Features that change the attention of some model families and that this file does not compute.
_UNSUPPORTED = ("softcap", "s_aux", "position_bias")
# torch 2.13 can share key and value heads in the kernel; torch 2.11 has no such switch.
_VARLEN_SHARES_HEADS = "enable_gqa" in inspect.signature(varlen_attn).parameters


@dataclass(frozen=True)
class BucketGrid:
    """Packed tokens laid out as rectangles, one behind the other.

    Args:
        index: [T] int64: each packed token's place.
        shapes: (sequences, longest) of each rectangle; their products sum to the number of places.
    """

    index: torch.Tensor
    shapes: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device, max_padding: float = MAX_PADDING_SHARE) -> BucketGrid:
        """Plan the rectangles.

        Args:
            lengths: Tokens of the packed sequences, in their order.
            device: Where the packed tokens are.
            max_padding: Largest share of padding in a rectangle; 1 gives a single one.
        """
        starts, shapes, place = [0] * len(lengths), [], 0
        for bucket in length_buckets(lengths, max_padding):
            longest = lengths[bucket[0]]
            for row, sequence in enumerate(bucket):
                starts[sequence] = place + row * longest
            shapes.append((len(bucket), longest))
            place += len(bucket) * longest
        index = torch.cat([torch.arange(start, start + n) for start, n in zip(starts, lengths, strict=True)])
        return cls(index.to(device), tuple(shapes))

    def spread(self, packed: torch.Tensor) -> list[torch.Tensor]:
        """Lay packed tokens out.

        Args:
            packed: [1, H, T, D].

        Returns:
            [n, H, longest, D] for each rectangle, zeros where there is no token.
        """
        heads, dim = packed.shape[1], packed.shape[3]
        sizes = [n * longest for n, longest in self.shapes]
        places = packed.new_zeros(sum(sizes), heads, dim)
        places = places.index_copy(0, self.index, packed[0].transpose(0, 1))
        return [
            part.view(n, longest, heads, dim).transpose(1, 2)
            for part, (n, longest) in zip(places.split(sizes), self.shapes, strict=True)
        ]

    def collect(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """Pack again.

        Args:
            parts: [n, H, longest, D] for each rectangle.

        Returns:
            [1, T, H, D].
        """
        flat = torch.cat([part.transpose(1, 2).flatten(0, 1) for part in parts])
        return flat.index_select(0, self.index)[None]


class SequenceLayout:
    """Where the packed sequences lie.

    No dataclass: FSDP copies those that it finds among a layer's inputs, and each copy would plan its grid anew.

    Args:
        cu_seqlens: [N+1] int32, borders of the sequences.
        max_seqlen: Longest sequence, tokens.
        parallel: The ranks that share the sequences, if they are shared: a model then sees this rank's slice of the
            tokens, while borders and lengths describe all of them.
    """

    def __init__(self, cu_seqlens: torch.Tensor, max_seqlen: int, parallel: SequenceParallel | None = None) -> None:
        self.cu_seqlens = cu_seqlens
        self.max_seqlen = max_seqlen
        self.parallel = parallel

    @classmethod
    def of(cls, packed: PackedSequences, parallel: SequenceParallel | None = None) -> SequenceLayout:
        """Describe the layout once per forward pass; every layer reuses it.

        Args:
            packed: All of the sequences.
            parallel: The ranks that share them.
        """
        return cls(packed.cu_seqlens, packed.max_seqlen, parallel)

    @cached_property
    def grid(self) -> BucketGrid:
        """Rectangles for kernels that know no borders; planned on first use, on the host."""
        return BucketGrid.of(self.cu_seqlens.diff().tolist(), self.cu_seqlens.device)


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
        ([1, T, H, D], None), as transformers expects. Under sequence parallelism T is this rank's slice, here as in
        the arguments.

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
    if layout.parallel is None:
        return attend(query, key, value, layout, scaling, window), None  # type: ignore[arg-type]
    heads = layout.parallel.tokens_to_heads(query, key, value)
    return layout.parallel.heads_to_tokens(attend(*heads, layout, scaling, window)), None  # type: ignore[arg-type]


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
    """Attend on rectangles of nearly equal lengths: causal order hides the padding on the right.

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
    return attend_on_grid(query, key, value, layout.grid, scaling)


def attend_on_grid(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, grid: BucketGrid, scaling: float | None
) -> torch.Tensor:
    """Attend with one call per rectangle.

    Args:
        query: [1, H, T, D].
        key: [1, H_kv, T, D].
        value: [1, H_kv, T, D].
        grid: Places of the T tokens.
        scaling: Factor of the scores; None for 1 / sqrt(D).

    Returns:
        [1, T, H, D].
    """
    rectangles = zip(*(grid.spread(x) for x in (query, key, value)), strict=True)
    return grid.collect([_attend_rectangle(q, k, v, scaling) for q, k, v in rectangles])


def _attend_rectangle(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None
) -> torch.Tensor:
    """[n, H, L, D] of the queries' dtype, by the fastest way for their kind."""
    if product_attention.pays(query.device.type, query.dtype, query.shape[2]):
        return product_attention.causal_attention(query, key, value, scaling)
    return attend_by_kernel(query, key, value, scaling)


def attend_by_kernel(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None
) -> torch.Tensor:
    """Attend with torch's kernel, for sequences of one length.

    Args:
        query: [n, H, L, D].
        key: [n, H_kv, L, D].
        value: [n, H_kv, L, D].
        scaling: Factor of the scores; None for 1 / sqrt(D).

    Returns:
        [n, H, L, D] in the dtype of the queries.
    """
    # On the CPU the backward pass of this kernel is three times slower in 16 bit than in float32.
    dtype = torch.float32 if query.device.type == "cpu" else query.dtype
    shares = query.shape[1] != key.shape[1]
    attended = F.scaled_dot_product_attention(
        query.to(dtype), key.to(dtype), value.to(dtype), is_causal=True, scale=scaling, enable_gqa=shares
    )
    return attended.to(query.dtype)


AttentionInterface.register(IMPLEMENTATION, packed_attention)
