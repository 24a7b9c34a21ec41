# SPDX-License-Identifier: Apache-2.0
"""Whole weights out of a sharded model, one at a time. It knows no file and no receiver."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from verl.engines.heads import PREFIX


def named_full_weights(module: nn.Module, dtype: torch.dtype | None) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every parameter whole on every rank; all ranks must run the iterator to its end together.

    Shards are converted before they are gathered, so that 16-bit weights cost 16-bit traffic. Only one whole parameter
    exists at a time, unless the caller keeps them.

    Args:
        module: The sharded `PackedModel`, its shards in place (not gathered).
        dtype: Dtype wanted; None for the shards' own.

    Yields:
        HF name and detached tensor. A tied output projection does not appear beside the embedding it is tied to.
    """
    for name, parameter in module.named_parameters():
        piece = parameter.detach()
        if dtype is not None:
            piece = piece.to(dtype)
        yield name.removeprefix(PREFIX), piece.full_tensor() if isinstance(piece, DTensor) else piece
