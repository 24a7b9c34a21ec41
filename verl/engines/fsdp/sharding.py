# SPDX-License-Identifier: Apache-2.0
"""A model's weights, spread over a mesh of ranks with torch FSDP2. It knows no batch, no loss and no optimizer.

Rank 0 alone reads the files. Every rank builds the empty structure, shards it, and receives its part; no rank but the
first ever holds the whole model, and no two ranks hold it in the same memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard

from verl.engines.adapters import LoraSpec
from verl.engines.base import LORA, EngineSpec, PrecisionSpec, ShardingSpec, load_object
from verl.engines.fsdp.ranks import check_heads
from verl.engines.heads import PREFIX, PackedModel
from verl.engines.loading import empty_model, load_model
from verl.engines.sequence_parallel import SequenceParallel
from verl.utils.errors import UserError


def make_mesh(device: torch.device, shard_size: int) -> DeviceMesh:
    """Arrange the ranks: one line of shards, or several copies of shorter lines.

    Args:
        device: This rank's device.
        shard_size: Ranks per copy of the model; -1 for all.

    Returns:
        A mesh with dimension `shard`, and `replicate` before it if there are copies.

    Raises:
        UserError: The size does not divide the number of ranks.
    """
    world_size = dist.get_world_size()
    if shard_size in (-1, world_size):
        return init_device_mesh(device.type, (world_size,), mesh_dim_names=("shard",))
    if shard_size < 1 or world_size % shard_size:
        raise UserError.for_key(
            "fsdp_config.fsdp_size",
            shard_size,
            f"must divide the number of ranks ({world_size}), or be -1 for all",
            "Choose a divisor",
        )
    shape = (world_size // shard_size, shard_size)
    return init_device_mesh(device.type, shape, mesh_dim_names=("replicate", "shard"))


def build_sharded(
    spec: EngineSpec, device: torch.device, mesh: DeviceMesh, parallel: SequenceParallel | None = None
) -> PackedModel:
    """Load a model onto the mesh.

    Args:
        spec: Which model, precision and sharding.
        device: This rank's device.
        mesh: From `make_mesh`.
        parallel: The ranks that share every sequence.

    Returns:
        The sharded module; its parameters are DTensors in the master dtype.
    """
    module = PackedModel(empty_model(spec), spec.head, spec.head_chunk_size, parallel)
    if parallel is not None:
        check_heads(module.model, parallel.size)
    source = load_model(spec) if dist.get_rank() == 0 else None
    if spec.lora is not None:
        put_adapters = load_object(LORA)
        module.adapters = put_adapters(module.model, spec.lora)
        source = source if source is None else _with_adapters(source, put_adapters, spec.lora)
    _freeze_and_cast(module, spec)
    if spec.optimizer is not None and spec.gradient_checkpointing:
        module.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        module.offloads_activations = spec.activation_offload
    if spec.compile_layers:
        compile_between_attentions(module.model)
    shard(module, mesh, spec.precision, spec.sharding)
    module.to_empty(device="cpu" if spec.sharding.cpu_offload else device)
    _fill(module, source, device)
    return module


def shard(module: PackedModel, mesh: DeviceMesh, precision: PrecisionSpec, sharding: ShardingSpec) -> None:
    """Make every decoder layer one unit of gathering and freeing, and the rest (embeddings, norm, head) another.

    Args:
        module: On the meta device or filled.
        mesh: From `make_mesh`.
        precision: Dtypes of computing and reducing.
        sharding: Memory choices.
    """
    policy = MixedPrecisionPolicy(
        param_dtype=getattr(torch, precision.compute),
        reduce_dtype=getattr(torch, precision.reduce),
    )
    offload = CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda") if sharding.cpu_offload else OffloadPolicy()
    layers = decoder_layers(module.model)
    for layer in layers:
        fully_shard(
            layer,
            mesh=mesh,
            mp_policy=policy,
            offload_policy=offload,
            reshard_after_forward=sharding.reshard_after_forward,
        )
    fully_shard(module, mesh=mesh, mp_policy=policy, offload_policy=offload, reshard_after_forward=False)
    if sharding.forward_prefetch:
        for layer, following in zip(layers, layers[1:], strict=False):
            _as_fsdp(layer).set_modules_to_forward_prefetch([_as_fsdp(following)])


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """Find the blocks of a transformers model that are to be sharded one by one.

    Args:
        model: The model.

    Returns:
        Its decoder layers, in order.

    Raises:
        UserError: The model does not say which of its modules are layers.
    """
    names = set(getattr(model, "_no_split_modules", None) or ())
    layers = [module for module in model.modules() if type(module).__name__ in names]
    if not layers:
        raise UserError(f"{type(model).__name__} names no decoder layers (_no_split_modules), so it cannot be sharded")
    return layers


def compile_between_attentions(model: nn.Module) -> None:
    """Let torch.compile fuse norms and feed-forward of every layer, for packs of any length.

    Attention stays out: how it cuts a pack changes with every micro-batch, and it is one kernel already.

    Args:
        model: Not sharded yet; gathering stays outside of what is compiled.
    """
    for layer in decoder_layers(model):
        for child in layer.children():
            if "Attention" not in type(child).__name__:
                child.compile(dynamic=True)


def reshard_all(module: nn.Module) -> None:
    """Free every gathered weight of a sharded module.

    After a forward pass without a backward pass some units stay gathered: the root, and all of them without
    `reshard_after_forward`. Their parameters would then read as whole tensors in the compute dtype.

    Args:
        module: The sharded module.
    """
    for unit in module.modules():
        if isinstance(unit, FSDPModule):
            unit.reshard()


def _as_fsdp(module: nn.Module) -> FSDPModule:
    if not isinstance(module, FSDPModule):
        raise TypeError(f"{type(module).__name__} is not sharded")
    return module


def _fill(module: PackedModel, source: nn.Module | None, device: torch.device) -> None:
    """Send rank 0's weights to the shards of all ranks, converted to the shards' dtype, and its buffers whole."""
    state = {PREFIX + name: value for name, value in source.state_dict().items()} if source is not None else {}
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(module, state, options=options)
    buffers = dict(source.named_buffers()) if source is not None else {}
    # Buffers outside the state dict too: rotary frequencies exist nowhere else, and `to_empty` left them undefined.
    for name, buffer in module.model.named_buffers():
        whole = buffers[name].to(buffer) if source is not None else torch.empty_like(buffer)
        whole = whole.to(device)
        dist.broadcast(whole, src=0)
        owner, _, leaf = name.rpartition(".")
        module.model.get_submodule(owner)._buffers[leaf] = whole


def _with_adapters(source: nn.Module, put_adapters: Callable[..., Any], lora: LoraSpec) -> nn.Module:
    """Initialise adapters in rank 0's model, whose weights the others receive."""
    put_adapters(source, lora)
    return source


def _freeze_and_cast(module: PackedModel, spec: EngineSpec) -> None:
    """Say which parameters are trained, and set dtypes of parameters alone: rotary frequencies are buffers and need
    their float32. Weights frozen beside adapters are only ever computed with, so they are stored as they are used.
    """
    master, compute = getattr(torch, spec.precision.master), getattr(torch, spec.precision.compute)
    pairs = module.adapters.pairs.values() if module.adapters is not None else ()
    adapters = {PREFIX + name for pair in pairs for name in (pair.down, pair.up)}
    for name, parameter in module.named_parameters():
        is_trained = spec.optimizer is not None and (not adapters or name in adapters)
        parameter.requires_grad_(is_trained)
        parameter.data = parameter.data.to(compute if adapters and not is_trained else master)
