# SPDX-License-Identifier: Apache-2.0
"""Megatron's core attention over packed sequences: the kernels of `verl.engines.attention` in Megatron's layout.

Hidden states are [T, 1, H]: one row that holds all sequences. The layout of the sequences travels in Megatron's own
`packed_seq_params`, which its layers and its recomputation hand on; the format stays `sbhd`, since rotary angles are
computed from the position ids for the whole row at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch import nn

from verl.engines.attention import SequenceLayout, attend_padded, attend_varlen, uses_varlen


@dataclass
class PackedLayoutParams(PackedSeqParams):
    """Where the packed sequences lie.

    Args:
        layout: As for every engine.
    """

    layout: SequenceLayout | None = None


class PackedCoreAttention(nn.Module):
    """Causal attention within each packed sequence; Megatron builds one per layer.

    Args:
        config: Megatron's transformer config (unused: heads are counted on the tensors).
        layer_number: Counted from 1 (unused).
        *_: What else Megatron passes to a core attention.
        **__: The same by name.
    """

    def __init__(self, config: Any, layer_number: int, *_: Any, **__: Any) -> None:
        super().__init__()

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *,
        packed_seq_params: PackedSeqParams | None = None,
        **_: Any,
    ) -> torch.Tensor:
        """Attend.

        Args:
            query: [T, 1, heads of this rank, D].
            key: [T, 1, key-value heads of this rank, D].
            value: [T, 1, key-value heads of this rank, D].
            attention_mask: Unused; no mask is ever built.
            packed_seq_params: A `PackedLayoutParams`.
            **_: Mask type and bias, which packed causal attention does not read.

        Returns:
            [T, 1, heads of this rank * D].
        """
        if not isinstance(packed_seq_params, PackedLayoutParams) or packed_seq_params.layout is None:
            raise TypeError("packed attention needs packed_seq_params=PackedLayoutParams")
        attend = attend_varlen if uses_varlen(query.device.type, query.dtype) else attend_padded
        q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        attended = attend(q, k, v, packed_seq_params.layout, None, None)
        return attended.transpose(0, 1).flatten(2)
