# SPDX-License-Identifier: Apache-2.0
"""Weights between HF names and the ranks of a Megatron model, one at a time. It knows no optimizer and no receiver.

In: rank 0 alone reads the files; each weight is broadcast whole and every rank keeps its part.
Out: the tensor-parallel ranks of a stage join their parts, and the stage hands the whole to the other stages.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
import torch.distributed as dist
from torch import nn

from verl.engines.megatron import weights as naming
from verl.engines.megatron.parallel import ParallelLayout
from verl.engines.megatron.weights import EMBEDDING, FINAL_NORM, OUTPUT, Qwen2Shape


def own_parameters(module: nn.Module, shape: Qwen2Shape, layout: ParallelLayout) -> dict[str, nn.Parameter]:
    """Find this stage's parameters by their names in the whole model.

    Args:
        module: This rank's model.
        shape: Sizes of the whole model.
        layout: This rank's place.

    Returns:
        Megatron's name, with layers counted over all stages -> parameter. The last stage's copy of a tied embedding is
        among them as the output layer.
    """
    first = layout.pp_rank * (shape.layers // layout.pp_size)
    return {naming.shift_layer(name, first): parameter for name, parameter in module.named_parameters()}


def stage_of(name: str, shape: Qwen2Shape, num_stages: int) -> int:
    """Say which pipeline stage holds a weight (of a tied embedding: the one that embeds).

    Args:
        name: Megatron's, of the whole model.
        shape: Sizes of the whole model.
        num_stages: Stages.
    """
    layer = naming.layer_of(name)
    if layer is not None:
        return layer // (shape.layers // num_stages)
    return num_stages - 1 if name in (FINAL_NORM, OUTPUT) else 0


@torch.no_grad()
def fill(
    module: nn.Module, source: Mapping[str, torch.Tensor] | None, shape: Qwen2Shape, layout: ParallelLayout
) -> None:
    """Give every rank its part of the weights; collective over all ranks.

    Args:
        module: This rank's model, on its device.
        source: Weights by transformers' names, on rank 0; None elsewhere.
        shape: Sizes of the whole model.
        layout: This rank's place.
    """
    mine = own_parameters(module, shape, layout)
    example = next(iter(mine.values()))
    for name in shape.parameters():
        if source is not None:
            whole = naming.merge(name, source, shape, layout.tp_size).to(example).contiguous()
        else:
            whole = example.new_empty(shape.full_shape(name, layout.tp_size))
        dist.broadcast(whole, src=0)
        holders = (name, OUTPUT) if name == EMBEDDING and shape.is_tied else (name,)
        for holder in holders:
            if holder in mine:
                mine[holder].copy_(naming.split(name, whole, layout.tp_size, layout.tp_rank))


def named_whole_weights(
    module: nn.Module, shape: Qwen2Shape, layout: ParallelLayout, dtype: torch.dtype | None
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every weight whole, by transformers' name, on every rank; all ranks must run it to its end together.

    Only one Megatron weight exists whole at a time, unless the caller keeps what it is given.

    Args:
        module: This rank's model.
        shape: Sizes of the whole model.
        layout: This rank's place.
        dtype: Dtype wanted; None for the parameters' own. Conversion comes before the traffic.

    Yields:
        Name and detached tensor; tied weights once, under the input embedding.
    """
    mine = own_parameters(module, shape, layout)
    example = next(iter(mine.values())).detach()[:0].to(dtype)
    for name in shape.parameters():
        stage = stage_of(name, shape, layout.pp_size)
        if stage == layout.pp_rank:
            whole = _join_parts(name, mine[name].detach().to(example.dtype), layout)
        else:
            whole = example.new_empty(shape.full_shape(name, layout.tp_size))
        if layout.pp_size > 1:
            dist.broadcast(whole, src=layout.stage_rank(stage), group=layout.pp_group)
        yield from naming.separate(name, whole, shape)


def _join_parts(name: str, own: torch.Tensor, layout: ParallelLayout) -> torch.Tensor:
    if layout.tp_size == 1 or naming.split_dim(name) is None:
        return naming.join(name, [own]).contiguous()
    parts = [torch.empty_like(own, memory_format=torch.contiguous_format) for _ in range(layout.tp_size)]
    dist.all_gather(parts, own.contiguous(), group=layout.tp_group)
    return naming.join(name, parts).contiguous()
