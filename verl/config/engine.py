# SPDX-License-Identifier: Apache-2.0
"""What every trainable model needs: optimizer and sharding.

Shared by actor, reference, SFT and PRM training.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from verl.config.fields import limited
from verl.config.names import DType, LRSchedule


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW and its learning-rate schedule (linear warm-up, then `lr_scheduler_type`)."""

    lr: float = limited(1e-6, low=0.0)
    """Peak learning rate of AdamW."""
    weight_decay: float = limited(0.01, low=0.0)
    """Decoupled weight decay."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay rates of the first and second moment."""
    eps: float = limited(1e-8, above=0.0)
    """AdamW's epsilon."""
    lr_warmup_steps: int = limited(-1, low=0, or_value=-1)
    """Linear warm-up; -1 = take `lr_warmup_steps_ratio`. Unit: optimizer steps."""
    lr_warmup_steps_ratio: float = limited(0.0, low=0.0, high=1.0)
    """Warm-up as a share of all optimizer steps, read when `lr_warmup_steps` is -1."""
    lr_scheduler_type: LRSchedule = "constant"
    """Learning rate after the warm-up."""
    min_lr_ratio: float = limited(0.0, low=0.0, high=1.0)
    """Where `cosine` ends, as a share of `lr`."""


@dataclass(frozen=True, kw_only=True)
class MixedPrecisionConfig:
    """FSDP2's mixed precision."""

    param_dtype: DType = "bfloat16"
    """Type of weights and activations in forward and backward."""
    reduce_dtype: DType = "float32"
    """Type in which gradients are summed over ranks."""


@dataclass(frozen=True, kw_only=True)
class FSDPConfig:
    """Fully sharded data parallelism (torch FSDP2)."""

    model_dtype: DType = "float32"
    """Type in which the sharded weights are stored (and updated, for a trained model)."""
    mixed_precision: MixedPrecisionConfig = field(default_factory=MixedPrecisionConfig)
    """Types used while computing."""
    param_offload: bool = False
    """Keep weights (and gradients) in CPU memory while the engine is idle."""
    optimizer_offload: bool = False
    """Keep optimizer states in CPU memory while the engine is idle."""
    offload_policy: bool = False
    """FSDP2's own CPU offload: weights, gradients and optimizer states live in CPU memory all the time."""
    reshard_after_forward: bool = True
    """Free gathered weights after each layer's forward pass (less memory, one more gather in the backward pass)."""
    forward_prefetch: bool = False
    """Gather the next layer's weights before the current layer is done."""
    fsdp_size: int = limited(-1, low=1, or_value=-1)
    """Ranks in one sharding group; -1 = all ranks. Smaller = hybrid sharding (replicated groups). Unit: ranks."""


@dataclass(frozen=True, kw_only=True)
class MegatronConfig:
    """Megatron-core parallelism, read when `strategy=megatron`."""

    tensor_model_parallel_size: int = limited(1, low=1)
    """Ranks that share one layer's matrices. Unit: ranks."""
    pipeline_model_parallel_size: int = limited(1, low=1)
    """Ranks that share the layers. Unit: ranks."""
    virtual_pipeline_model_parallel_size: int | None = limited(None, low=2)
    """Interleaved pipeline chunks per rank; null = off."""
    context_parallel_size: int = limited(1, low=1)
    """Ranks that share one sequence. Unit: ranks."""
    sequence_parallel: bool = True
    """Split norms and dropouts over the tensor-parallel ranks."""
    use_distributed_optimizer: bool = True
    """Shard optimizer states over the data-parallel ranks."""
    param_offload: bool = False
    """Keep weights in CPU memory while the engine is idle."""
    grad_offload: bool = False
    """Keep gradient buffers in CPU memory while the engine is idle."""
    optimizer_offload: bool = False
    """Keep optimizer states in CPU memory while the engine is idle."""
