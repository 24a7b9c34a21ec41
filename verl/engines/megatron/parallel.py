# SPDX-License-Identifier: Apache-2.0
"""Which ranks share what: Megatron's process groups, made once per process, and what the engine asks of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

from verl.engines.base import MegatronSpec
from verl.engines.megatron.weights import Qwen2Shape
from verl.utils.errors import UserError

_SECTION = "actor_rollout_ref.actor.megatron"
_TENSOR, _PIPELINE = f"{_SECTION}.tensor_model_parallel_size", f"{_SECTION}.pipeline_model_parallel_size"


@dataclass(frozen=True)
class ParallelLayout:
    """This rank's place in each dimension, and the groups.

    Args:
        tp_rank: Among the ranks that share one layer's matrices.
        tp_size: How many these are.
        pp_rank: Pipeline stage.
        pp_size: Stages.
        dp_rank: Among the copies of the model.
        dp_size: Copies.
    """

    tp_rank: int
    tp_size: int
    pp_rank: int
    pp_size: int
    dp_rank: int
    dp_size: int

    @property
    def tp_group(self) -> dist.ProcessGroup:
        """Ranks that share one layer's matrices."""
        return parallel_state.get_tensor_model_parallel_group()

    @property
    def pp_group(self) -> dist.ProcessGroup:
        """Ranks that share the layers, in the order of the stages."""
        return parallel_state.get_pipeline_model_parallel_group()

    @property
    def dp_group(self) -> dist.ProcessGroup:
        """Ranks that hold copies of the same part of the model."""
        return parallel_state.get_data_parallel_group()

    def stage_rank(self, stage: int) -> int:
        """Global rank of a stage of this rank's pipeline."""
        return dist.get_global_rank(self.pp_group, stage)


def make_layout(spec: MegatronSpec) -> ParallelLayout:
    """Make Megatron's process groups, or take those that another engine of this process made.

    Args:
        spec: The sizes.

    Returns:
        This rank's place.

    Raises:
        UserError: The sizes do not divide the ranks, or another engine of this process uses other sizes.
    """
    check_world(spec, dist.get_world_size())
    wanted = (spec.tensor_parallel, spec.pipeline_parallel)
    if not parallel_state.model_parallel_is_initialized():
        parallel_state.initialize_model_parallel(*wanted)
        # Nothing in the model draws random numbers, but Megatron forks its generators by name all the same.
        model_parallel_cuda_manual_seed(0)
    found = (
        parallel_state.get_tensor_model_parallel_world_size(),
        parallel_state.get_pipeline_model_parallel_world_size(),
    )
    if found != wanted:
        raise UserError.for_key(
            _TENSOR, wanted, f"the engines of a process share (tensor, pipeline) sizes, here {found}", "Set them alike"
        )
    return ParallelLayout(
        tp_rank=parallel_state.get_tensor_model_parallel_rank(),
        tp_size=found[0],
        pp_rank=parallel_state.get_pipeline_model_parallel_rank(),
        pp_size=found[1],
        dp_rank=parallel_state.get_data_parallel_rank(),
        dp_size=parallel_state.get_data_parallel_world_size(),
    )


def check_world(spec: MegatronSpec, world_size: int) -> None:
    """Refuse sizes that do not divide the ranks.

    Args:
        spec: The sizes.
        world_size: Ranks.

    Raises:
        UserError: They do not.
    """
    shared = spec.tensor_parallel * spec.pipeline_parallel
    if world_size % shared:
        allowed = f"times {_PIPELINE}={spec.pipeline_parallel} must divide the {world_size} ranks"
        raise UserError.for_key(_TENSOR, spec.tensor_parallel, allowed, "Choose sizes whose product divides them")


def check_model(spec: MegatronSpec, shape: Qwen2Shape) -> None:
    """Refuse sizes that do not divide the model.

    Args:
        spec: The sizes.
        shape: The model.

    Raises:
        UserError: They do not.
    """
    divided = (
        (_TENSOR, spec.tensor_parallel, shape.heads, "attention heads"),
        (_TENSOR, spec.tensor_parallel, shape.kv_heads, "key-value heads"),
        (_TENSOR, spec.tensor_parallel, shape.mlp, "MLP channels"),
        (_PIPELINE, spec.pipeline_parallel, shape.layers, "layers"),
    )
    for key, size, count, what in divided:
        if count % size:
            raise UserError.for_key(key, size, f"must divide the model's {count} {what}", "Set it to a divisor")
