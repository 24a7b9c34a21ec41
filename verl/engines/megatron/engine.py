# SPDX-License-Identifier: Apache-2.0
"""`TrainEngine` over Megatron-core: tensor, pipeline, sequence and data parallel. It knows no loss and no batch layout.

Ranks that share a model (tensor, pipeline) have one `dp_rank`: they are given the same micro-batches and give the same
answers. Gradients gather in Megatron's buffers and are summed over the data-parallel ranks once, in `optimizer_step`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads

from verl.engines.base import CAUSAL_LM, EngineSpec, HeadOutputs, HeadRequest, LossFn, OptimizerReport
from verl.engines.hf_export import write_hf_folder
from verl.engines.loading import empty_model, load_model, read_config
from verl.engines.megatron.checkpoint import CheckpointParts, load_checkpoint, save_checkpoint
from verl.engines.megatron.model import PackedGPT, transformer_config
from verl.engines.megatron.offload import HostStash
from verl.engines.megatron.optimizer import MegatronAdamW
from verl.engines.megatron.parallel import check_model, make_layout
from verl.engines.megatron.schedule import Pipeline
from verl.engines.megatron.transport import fill, named_whole_weights
from verl.engines.megatron.weights import Qwen2Shape
from verl.engines.packing import PackedSequences
from verl.utils.device import ensure_process_group, release_memory, resolve_device
from verl.utils.errors import UserError


class MegatronEngine:
    """A Qwen2 model trained (or, without an optimizer, only run) by Megatron-core.

    Args:
        spec: The same on every rank. The process group is started if it is not (RANK, WORLD_SIZE, MASTER_ADDR,
            MASTER_PORT), and LOCAL_RANK picks the GPU.

    Attributes:
        module: This rank's part of the model.
        layout: This rank's place.

    Example:
        >>> spec = EngineSpec("Qwen/Qwen2.5-7B-Instruct", OptimizerSpec(), "megatron")  # doctest: +SKIP
        >>> engine = MegatronEngine(spec)  # doctest: +SKIP
    """

    def __init__(self, spec: EngineSpec) -> None:
        _check_spec(spec)
        self.spec = spec
        self.device = resolve_device(spec.device, int(os.environ.get("LOCAL_RANK", "0")))
        ensure_process_group(self.device)
        self._shape = Qwen2Shape.of(read_config(spec), spec.model_path, spec.path_key)
        check_model(spec.megatron, self._shape)
        self.layout = make_layout(spec.megatron)
        self.dp_rank, self.dp_size = self.layout.dp_rank, self.layout.dp_size
        self.module = self._build_model()
        self._ddp = self._wrap() if spec.optimizer is not None else None
        self._optimizer = (
            MegatronAdamW(spec.optimizer, spec, self._ddp) if spec.optimizer is not None and self._ddp else None
        )
        is_split = self.module.config.sequence_parallel
        self._pipeline = Pipeline(
            self._ddp or self.module,
            self.module.outputs,
            self.layout,
            self.device,
            self.layout.tp_size if is_split else 1,
        )
        self._weights_away, self._optimizer_away = HostStash(), HostStash()

    def _build_model(self) -> PackedGPT:
        config = transformer_config(self.spec, self._shape)
        module = PackedGPT(config, self._shape, self.spec.head_chunk_size).to(self.device)
        if self.spec.optimizer is None:
            module.requires_grad_(False)
        source = load_model(self.spec).state_dict() if dist.get_rank() == 0 else None
        fill(module, source, self._shape, self.layout)
        return module

    def _wrap(self) -> DistributedDataParallel:
        config = DistributedDataParallelConfig(
            grad_reduce_in_fp32=self.spec.precision.reduce == "float32",
            overlap_grad_reduce=False,
            use_distributed_optimizer=self.spec.megatron.distributed_optimizer,
        )
        ddp = DistributedDataParallel(self.module.config, config, self.module)
        ddp.zero_grad_buffer()
        return ddp

    @torch.no_grad()
    def forward(self, micro_batches: Sequence[PackedSequences], head: HeadRequest) -> list[HeadOutputs]:
        """Run the model without gradient.

        Args:
            micro_batches: Equally many on every rank.
            head: What is wanted.

        Returns:
            One answer per micro-batch, on every rank; on the CPU if there are several pipeline stages.
        """
        self.module.eval()

        def finish(packed: PackedSequences, outputs: HeadOutputs) -> tuple[torch.Tensor, dict[str, Any]]:
            return torch.zeros((), device=self.device), vars(outputs)

        kept = self._pipeline.run(micro_batches, head, finish, is_training=False)
        return [HeadOutputs(**each) for each in self._pipeline.share(kept)]

    def forward_backward(
        self, micro_batches: Sequence[PackedSequences], head: HeadRequest, loss_fn: LossFn
    ) -> list[dict[str, torch.Tensor]]:
        """Add the gradient of the summed loss shares.

        Args:
            micro_batches: Equally many on every rank.
            head: What the loss needs.
            loss_fn: Gives shares under global denominators, see `LossFn`; called on the last pipeline stage.

        Returns:
            Metric shares per micro-batch, detached, on every rank.
        """
        self._trained()
        self.module.train()

        def finish(packed: PackedSequences, outputs: HeadOutputs) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            loss, metrics = loss_fn(packed, outputs)
            return loss, {name: value.detach() for name, value in metrics.items()}

        return self._pipeline.share(self._pipeline.run(micro_batches, head, finish, is_training=True))

    def optimizer_step(self) -> OptimizerReport:
        """Sum gradients over the ranks, clip to the largest norm, step, advance the schedule, forget the gradient.

        Returns:
            Norm before clipping, rate, and whether the step was skipped because the gradient was not finite.
        """
        ddp, optimizer = self._trained()
        finalize_model_grads([ddp])
        report = optimizer.step()
        ddp.zero_grad_buffer()
        return report

    def _trained(self) -> tuple[DistributedDataParallel, MegatronAdamW]:
        if self._ddp is None or self._optimizer is None:
            raise RuntimeError("this engine was built without an optimizer: its model is frozen")
        return self._ddp, self._optimizer

    def all_reduce(self, values: torch.Tensor, op: Literal["sum", "max"]) -> torch.Tensor:
        """Combine a tensor over the data-parallel ranks.

        Args:
            values: Any shape, equal on every rank.
            op: How.

        Returns:
            A new tensor on the CPU.
        """
        combined = values.detach().to("cpu", copy=True)
        how = dist.ReduceOp.SUM if op == "sum" else dist.ReduceOp.MAX
        dist.all_reduce(combined, op=how, group=self.layout.dp_group)
        return combined

    def named_weights(self, dtype: torch.dtype | None = None) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield every weight whole on every rank; run it to its end on all of them.

        Args:
            dtype: Dtype wanted; None for the dtype in which the model computes.

        Yields:
            HF name, tensor; tied weights once, under the input embedding.
        """
        yield from named_whole_weights(self.module, self._shape, self.layout, dtype)

    def offload(self, weights: bool = True, optimizer: bool = True) -> None:
        """Move to host memory; nothing to do on the CPU.

        Args:
            weights: Move the weights.
            optimizer: Move the optimizer states, the 32-bit weights among them.
        """
        if self.device.type == "cpu":
            return
        if weights:
            self._weights_away.put_away(self.module.parameters())
        if self.spec.megatron.grad_offload and self._ddp is not None:
            # Between optimizer steps gradients are zero, and come back so, with the optimizer: nothing else needs them.
            self._optimizer_away.put_away((buffer.grad_data for buffer in self._ddp.buffers), keeps_content=False)
        if optimizer and self._optimizer is not None:
            self._optimizer_away.put_away(t for t in self._optimizer.tensors() if t.device.type != "cpu")
        release_memory(self.device)

    def onload(self, weights: bool = True, optimizer: bool = True) -> None:
        """Move back to the device.

        Args:
            weights: Move the weights.
            optimizer: Move the optimizer states.
        """
        if weights:
            self._weights_away.bring_back()
        if optimizer:
            self._optimizer_away.bring_back()

    def save(self, folder: str) -> None:
        """Write a checkpoint.

        Args:
            folder: Where to.
        """
        save_checkpoint(folder, self._parts())

    def load(self, folder: str) -> None:
        """Read a checkpoint: of other layouts too, unless the distributed optimizer wrote it.

        Args:
            folder: Where from.
        """
        load_checkpoint(folder, self._parts())

    def _parts(self) -> CheckpointParts:
        return CheckpointParts(self.module, self._optimizer, self.layout, self.device)

    def export_hf(self, folder: str, dtype: torch.dtype | None = None) -> None:
        """Write config and whole weights in HF format; rank 0 writes.

        Args:
            folder: Where to.
            dtype: Dtype of the file; None for the compute dtype.
        """
        dtype = dtype or getattr(torch, self.spec.precision.compute)
        is_writer = dist.get_rank() == 0
        write_hf_folder(folder, empty_model(self.spec), self.named_weights(dtype), dtype, is_writer)
        dist.barrier()


def _check_spec(spec: EngineSpec) -> None:
    """Refuse what this engine does not do, before anything is loaded."""
    if spec.head != "log_probs" or spec.model_class != CAUSAL_LM:
        raise UserError(
            "The Megatron engine trains causal language models only, no classification heads. Train process-reward "
            "models with strategy=fsdp2"
        )
    if spec.lora is not None or spec.activation_offload:
        raise UserError(
            "The Megatron engine trains all weights, without adapters, and offloads no activations. Set "
            "model.lora_rank=0 and model.enable_activation_offload=False, or use strategy=fsdp2"
        )
    compute, master = spec.precision.compute, spec.precision.master
    key = "actor_rollout_ref.actor.megatron.dtype"
    if compute == "float16":
        raise UserError.for_key(key, compute, "allowed are bfloat16, float32", "Use bfloat16")
    if spec.optimizer is not None and master != "float32":
        raise UserError.for_key(key, master, "the weights that are updated are kept in float32", "Leave them so")
