# SPDX-License-Identifier: Apache-2.0
"""What every training engine can do, how one is described, and where to find it by name.

    micro-batches (packed) -> forward            -> log-probs           (old, ref: no gradient)
    micro-batches (packed) -> forward_backward   -> gradients, metrics  -> optimizer_step -> named_weights -> rollout

An engine knows meshes, shards, precision and collectives. It knows no loss (it is handed one), no rollout and no Ray.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch

from verl.engines.adapters import LoraSpec
from verl.engines.packing import PackedSequences
from verl.utils.errors import UserError

HeadKind = Literal["log_probs", "classification"]
SCHEDULES = ("constant", "linear", "cosine")
CAUSAL_LM = "transformers:AutoModelForCausalLM"
LORA = "verl.engines.lora:LoraAdapters"


@dataclass(frozen=True)
class OptimizerSpec:
    """AdamW and its learning-rate schedule.

    Args:
        lr: Peak learning rate.
        betas: Decay rates of the two moments.
        eps: Added to the root of the second moment.
        weight_decay: Decoupled weight decay, applied to every parameter.
        clip_grad: Largest global gradient norm; infinity switches clipping off.
        schedule: `constant`, `linear` or `cosine`, after the warm-up.
        warmup_steps: Linear warm-up, optimizer steps.
        total_steps: Optimizer steps of the whole run; read by `linear` and `cosine`.
        min_lr_ratio: Where `linear` and `cosine` end, as a share of `lr`.
    """

    lr: float = 1e-6
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01
    clip_grad: float = 1.0
    schedule: str = "constant"
    warmup_steps: int = 0
    total_steps: int = 0
    min_lr_ratio: float = 0.0

    def __post_init__(self) -> None:
        """Refuse an unknown schedule."""
        if self.schedule not in SCHEDULES:
            raise UserError.for_key(
                "optim.lr_scheduler_type", self.schedule, f"allowed are {', '.join(SCHEDULES)}", "Choose one of them"
            )


@dataclass(frozen=True)
class PrecisionSpec:
    """Names of torch dtypes.

    Args:
        master: Stored and updated weights. A frozen model may store them in `compute`.
        compute: Weights and activations in forward and backward.
        reduce: Gradients while they are summed over ranks.
    """

    master: str = "float32"
    compute: str = "bfloat16"
    reduce: str = "float32"


@dataclass(frozen=True)
class ShardingSpec:
    """How a model is spread over ranks and memories.

    Args:
        shard_size: Ranks that share one copy of the model; -1 for all. Smaller gives replicated groups.
        reshard_after_forward: Free gathered weights after each layer's forward pass.
        forward_prefetch: Gather the next layer's weights while a layer computes.
        cpu_offload: Keep shards, gradients and optimizer states in host memory all the time.
        sequence_parallel: Ranks that share one sequence (Ulysses); they form one data-parallel rank.
    """

    shard_size: int = -1
    reshard_after_forward: bool = True
    forward_prefetch: bool = False
    cpu_offload: bool = False
    sequence_parallel: int = 1


@dataclass(frozen=True)
class MegatronSpec:
    """How the Megatron-core engine spreads a model; the other engines do not read it.

    Args:
        tensor_parallel: Ranks that share one layer's matrices.
        pipeline_parallel: Ranks that share the layers.
        sequence_parallel: Split norms and residuals over the tensor-parallel ranks; no effect with one of them.
        distributed_optimizer: Shard optimizer states over the data-parallel ranks.
        recompute_granularity: `full` recomputes whole layers, `selective` attention alone; read with
            `EngineSpec.gradient_checkpointing`.
        recompute_method: `uniform` or `block`, read with `full`.
        recompute_num_layers: Layers per recomputed block, read with `full`.
        grad_offload: Give the gradient buffers' memory back whenever the engine is offloaded.
    """

    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    sequence_parallel: bool = True
    distributed_optimizer: bool = True
    recompute_granularity: str = "full"
    recompute_method: str = "uniform"
    recompute_num_layers: int = 1
    grad_offload: bool = False


@dataclass(frozen=True)
class EngineSpec:
    """Everything an engine needs to be built, on every rank alike.

    Args:
        model_path: Folder or hub id in HF format.
        optimizer: None for a frozen model (reference).
        strategy: Name in `ENGINES`.
        device: `auto`, `cuda` or `cpu`.
        model_class: `module:class` of a transformers model or auto class.
        fresh_weights: Beginnings of the names of weights that the files may lack, and that then start at random.
        trust_remote_code: Whether Python code beside the weights may run.
        config_overrides: Entries of the model's config to replace.
        head: What the model's output is: log-probs of target tokens, or class logits at the target positions.
        precision: Dtypes.
        sharding: Spread over ranks by FSDP2.
        megatron: Spread over ranks by Megatron-core.
        lora: Train low-rank adapters beside frozen weights; None trains all weights. The FSDP engine alone has them.
        gradient_checkpointing: Recompute each layer's activations in the backward pass.
        activation_offload: Keep what checkpointing leaves of them in host memory; read with `gradient_checkpointing`.
        compile_layers: Fuse the small operations of each layer by torch.compile. The FSDP engine alone does it.
        head_chunk_size: Tokens whose logits exist at the same time.
        path_key: The configuration key of `model_path`, for messages.
    """

    model_path: str
    optimizer: OptimizerSpec | None = None
    strategy: str = "fsdp2"
    device: str = "auto"
    model_class: str = CAUSAL_LM
    fresh_weights: tuple[str, ...] = ()
    trust_remote_code: bool = False
    config_overrides: dict[str, Any] = field(default_factory=dict)
    head: HeadKind = "log_probs"
    precision: PrecisionSpec = field(default_factory=PrecisionSpec)
    sharding: ShardingSpec = field(default_factory=ShardingSpec)
    megatron: MegatronSpec = field(default_factory=MegatronSpec)
    lora: LoraSpec | None = None
    gradient_checkpointing: bool = True
    activation_offload: bool = False
    compile_layers: bool = False
    head_chunk_size: int = 1024
    path_key: str = "actor_rollout_ref.model.path"


@dataclass(frozen=True)
class HeadRequest:
    """What to compute at the targets of a `log_probs` head; a classification head reads nothing of it.

    Args:
        temperature: Logits are divided by it.
        with_entropy: Whether the entropy is wanted.
        without_adapters: Answer as the frozen model does, for an engine that trains adapters. Without gradient only.
    """

    temperature: float = 1.0
    with_entropy: bool = False
    without_adapters: bool = False


@dataclass(frozen=True)
class HeadOutputs:
    """The model's answer at the M targets of one micro-batch; what was not asked for is None.

    Args:
        log_probs: [M] float32, of the target tokens.
        entropy: [M] float32, of the whole distribution at the target, in nats.
        logits: [M, C] float32, of a classification head.
    """

    log_probs: torch.Tensor | None = None
    entropy: torch.Tensor | None = None
    logits: torch.Tensor | None = None


class LossFn(Protocol):
    """A loss over one micro-batch."""

    def __call__(
        self, micro_batch: PackedSequences, outputs: HeadOutputs
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return this micro-batch's share of the loss, and of every metric.

        Shares are divided by GLOBAL denominators already: their plain sum over micro-batches and data-parallel ranks is
        the mini-batch's loss. The engine adds no scaling of its own.

        Args:
            micro_batch: What went through the model.
            outputs: What came out, with gradient.
        """
        ...


@dataclass(frozen=True)
class OptimizerReport:
    """What one optimizer step did.

    Args:
        grad_norm: Global norm before clipping; NaN or infinite if the step was skipped.
        lr: Learning rate that was used, or would have been.
        is_skipped: The gradient was not finite: weights, optimizer states and schedule stayed as they were.
    """

    grad_norm: float
    lr: float
    is_skipped: bool


class TrainEngine(Protocol):
    """A model on a mesh of ranks. Every method is collective: all ranks call it, in the same order."""

    spec: EngineSpec
    device: torch.device
    dp_rank: int
    dp_size: int

    def forward(self, micro_batches: Sequence[PackedSequences], head: HeadRequest) -> list[HeadOutputs]:
        """Run the model without gradient; every rank brings equally many micro-batches."""
        ...

    def forward_backward(
        self, micro_batches: Sequence[PackedSequences], head: HeadRequest, loss_fn: LossFn
    ) -> list[dict[str, torch.Tensor]]:
        """Add the gradient of the summed loss; returns each micro-batch's metric shares, detached."""
        ...

    def optimizer_step(self) -> OptimizerReport:
        """Clip, step, advance the schedule, forget the gradient."""
        ...

    def all_reduce(self, values: torch.Tensor, op: Literal["sum", "max"]) -> torch.Tensor:
        """Combine a tensor over the data-parallel ranks; returns a new one on the CPU."""
        ...

    def named_weights(self, dtype: torch.dtype | None = None) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield every weight whole, by its HF name, on every rank; tied weights once, under the input embedding."""
        ...

    def offload(self, weights: bool = True, optimizer: bool = True) -> None:
        """Move to host memory."""
        ...

    def onload(self, weights: bool = True, optimizer: bool = True) -> None:
        """Move back to the device."""
        ...

    def save(self, folder: str) -> None:
        """Write shards of weights and optimizer, schedule and random states into a folder."""
        ...

    def load(self, folder: str) -> None:
        """Read what `save` wrote, on any number of ranks unless the engine refuses another one by a `UserError`."""
        ...

    def export_hf(self, folder: str, dtype: torch.dtype | None = None) -> None:
        """Write config and whole weights as transformers and vLLM load them (no tokenizer)."""
        ...


# `fsdp` names the same engine: there is no FSDP1 here.
ENGINES: dict[str, str] = {
    "fsdp2": "verl.engines.fsdp.engine:FSDPEngine",
    "fsdp": "verl.engines.fsdp.engine:FSDPEngine",
    "megatron": "verl.engines.megatron.engine:MegatronEngine",
}


def load_object(dotted: str) -> Callable[..., Any]:
    """Import `module:name`.

    Args:
        dotted: Module, colon, attribute.

    Returns:
        The attribute.
    """
    module, _, name = dotted.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return found


def build_engine(spec: EngineSpec) -> TrainEngine:
    """Build the engine that a spec names.

    Args:
        spec: The same on every rank.

    Returns:
        The engine, its weights loaded.

    Raises:
        UserError: No engine of that name, or its package is not installed.
    """
    if spec.strategy not in ENGINES:
        raise UserError.for_key(
            "actor_rollout_ref.actor.strategy",
            spec.strategy,
            f"known engines are {', '.join(ENGINES)}",
            "Choose one of them",
        )
    try:
        engine_class = load_object(ENGINES[spec.strategy])
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("megatron"):
            raise
        raise UserError.for_key(
            "actor_rollout_ref.actor.strategy",
            spec.strategy,
            "needs the package megatron-core, which is not installed here",
            "Run: pip install --no-deps -r requirements/megatron.txt",
        ) from error
    engine: TrainEngine = engine_class(spec)
    return engine
