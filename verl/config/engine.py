# SPDX-License-Identifier: Apache-2.0
"""What every trainable model needs: optimizer and sharding.

Shared by actor, reference, SFT and PRM training.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from verl.config.fields import limited
from verl.config.names import DType, LRSchedule, RecomputeGranularity, RecomputeMethod


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
class TransformerOverrides:
    """Megatron-core's activation recomputation, in force with `model.enable_gradient_checkpointing`."""

    recompute_granularity: RecomputeGranularity = "full"
    """What the backward pass computes again: `full` layers, or attention alone (`selective`: more memory, faster)."""
    recompute_method: RecomputeMethod = "uniform"
    """With `full`: all layers in blocks of `recompute_num_layers` (`uniform`), or the first so many (`block`)."""
    recompute_num_layers: int = limited(1, low=1)
    """With `full`: layers per block, or layers recomputed, on one pipeline stage. Unit: layers."""


@dataclass(frozen=True, kw_only=True)
class MegatronConfig:
    """Megatron-core parallelism, read when `strategy=megatron`. Ranks that share a model get the same sequences."""

    tensor_model_parallel_size: int = limited(1, low=1)
    """Ranks that share one layer's matrices. Unit: ranks."""
    pipeline_model_parallel_size: int = limited(1, low=1)
    """Ranks that share the layers (1F1B schedule). Unit: ranks."""
    virtual_pipeline_model_parallel_size: int | None = limited(None, low=2)
    """Interleaved pipeline chunks per rank; not built, only null is accepted."""
    context_parallel_size: int = limited(1, low=1)
    """Ranks that share one sequence; not built, only 1 is accepted. Unit: ranks."""
    sequence_parallel: bool = True
    """Split norms and residuals over the tensor-parallel ranks; no effect with one of them."""
    use_distributed_optimizer: bool = True
    """Shard optimizer states over the data-parallel ranks. Its checkpoints resume on the same sizes only; those of the
    plain optimizer resume on any."""
    dtype: DType = "bfloat16"
    """Type of weights and activations; 32-bit weights are kept beside 16-bit ones for the update."""
    param_offload: bool = False
    """Keep weights in CPU memory while the engine is idle."""
    grad_offload: bool = False
    """Give the gradient buffers' memory back while the engine is idle."""
    optimizer_offload: bool = False
    """Keep optimizer states in CPU memory while the engine is idle."""
    override_transformer_config: TransformerOverrides = field(default_factory=TransformerOverrides)
    """Activation recomputation."""


@dataclass(frozen=True, kw_only=True)
class RefMegatronConfig:
    """Megatron-core for the reference model: it stands on the actor's ranks, in the actor's sizes."""

    tensor_model_parallel_size: int | None = limited(None, low=1)
    """null = the actor's, which is the only other value accepted. Unit: ranks."""
    pipeline_model_parallel_size: int | None = limited(None, low=1)
    """null = the actor's, which is the only other value accepted. Unit: ranks."""
    dtype: DType = "bfloat16"
    """Type of weights and activations."""
    param_offload: bool = False
    """Keep weights in CPU memory while the engine is idle."""
