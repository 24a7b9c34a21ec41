# SPDX-License-Identifier: Apache-2.0
"""`TrainEngine` over torch FSDP2: data and sequence parallel, weights and optimizer sharded over all ranks.

It knows no loss and no batch layout.

One backward pass per micro-batch: gather a layer, compute, free it, sum its gradient over the ranks into the shards.
Gradients are summed in every micro-batch rather than once at the end: whole gradients of a large model would not fit.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
import torch.distributed as dist

from verl.engines.base import EngineSpec, HeadOutputs, HeadRequest, LossFn, OptimizerReport, OptimizerSpec
from verl.engines.fsdp.checkpoint import load_checkpoint, save_checkpoint
from verl.engines.fsdp.ranks import split_ranks
from verl.engines.fsdp.sharding import build_sharded, make_mesh, reshard_all
from verl.engines.fsdp.weights import named_full_adapters, named_full_weights
from verl.engines.hf_export import write_adapters, write_hf_folder
from verl.engines.lr_schedule import lr_at
from verl.engines.packing import PackedSequences
from verl.utils.device import ensure_process_group, release_memory, resolve_device


class FSDPEngine:
    """A model trained (or, without an optimizer, only run) by FSDP2.

    Args:
        spec: The same on every rank. The process group is started if it is not (RANK, WORLD_SIZE, MASTER_ADDR,
            MASTER_PORT), and LOCAL_RANK picks the GPU.

    Attributes:
        module: The sharded `PackedModel`.

    Example:
        >>> engine = FSDPEngine(EngineSpec("Qwen/Qwen2.5-7B-Instruct", OptimizerSpec()))  # doctest: +SKIP
    """

    def __init__(self, spec: EngineSpec) -> None:
        self.spec = spec
        self.device = resolve_device(spec.device, int(os.environ.get("LOCAL_RANK", "0")))
        ensure_process_group(self.device)
        ranks = split_ranks(spec.sharding.sequence_parallel)
        self.dp_rank, self.dp_size, self._dp_group = ranks.dp_rank, ranks.dp_size, ranks.dp_group
        mesh = make_mesh(self.device, spec.sharding.shard_size)
        self.module = build_sharded(spec, self.device, mesh, ranks.parallel)
        self._optimizer = self._make_optimizer(spec.optimizer) if spec.optimizer is not None else None
        self._num_steps = 0

    def _make_optimizer(self, spec: OptimizerSpec) -> torch.optim.Optimizer:
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        return torch.optim.AdamW(
            parameters, lr=spec.lr, betas=spec.betas, eps=spec.eps, weight_decay=spec.weight_decay, fused=True
        )

    @torch.no_grad()
    def forward(self, micro_batches: Sequence[PackedSequences], head: HeadRequest) -> list[HeadOutputs]:
        """Run the model without gradient.

        Args:
            micro_batches: Equally many on every rank.
            head: What is wanted.

        Returns:
            One answer per micro-batch, on the engine's device.
        """
        self.module.eval()
        results = [self.module.outputs(micro_batch.to(self.device), head) for micro_batch in micro_batches]
        reshard_all(self.module)
        return results

    def forward_backward(
        self, micro_batches: Sequence[PackedSequences], head: HeadRequest, loss_fn: LossFn
    ) -> list[dict[str, torch.Tensor]]:
        """Add the gradient of the summed loss shares.

        Args:
            micro_batches: Equally many on every rank.
            head: What the loss needs.
            loss_fn: Gives shares under global denominators, see `LossFn`.

        Returns:
            Metric shares per micro-batch, detached.
        """
        self.module.train()
        shares = []
        for micro_batch in micro_batches:
            on_device = micro_batch.to(self.device)
            loss, metrics = loss_fn(on_device, self.module.outputs(on_device, head))
            # FSDP averages gradients over all ranks; the shares are meant to be summed. Ranks that share a sequence
            # see one loss, and each of them brings the part of its gradient that went through its tokens.
            (loss * dist.get_world_size()).backward()
            shares.append({name: value.detach() for name, value in metrics.items()})
        return shares

    def optimizer_step(self) -> OptimizerReport:
        """Clip to the largest norm, step, advance the schedule, forget the gradient.

        Returns:
            Norm before clipping, rate, and whether the step was skipped because the gradient was not finite.
        """
        spec, optimizer = self._trained()
        gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        norm = norm.full_tensor() if isinstance(norm, torch.distributed.tensor.DTensor) else norm
        lr = lr_at(self._num_steps, spec)
        is_finite = bool(torch.isfinite(norm))
        if is_finite:
            torch.nn.utils.clip_grads_with_norm_(self.module.parameters(), spec.clip_grad, norm)
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
            self._num_steps += 1
        optimizer.zero_grad(set_to_none=True)
        return OptimizerReport(float(norm), lr, is_skipped=not is_finite)

    def _trained(self) -> tuple[OptimizerSpec, torch.optim.Optimizer]:
        if self.spec.optimizer is None or self._optimizer is None:
            raise RuntimeError("this engine was built without an optimizer: its model is frozen")
        return self.spec.optimizer, self._optimizer

    def all_reduce(self, values: torch.Tensor, op: Literal["sum", "max"]) -> torch.Tensor:
        """Combine a tensor over the data-parallel ranks; those that share a sequence bring the same.

        Args:
            values: Any shape, equal on every rank.
            op: How.

        Returns:
            A new tensor on the CPU.
        """
        combined = values.detach().to("cpu", copy=True)
        dist.all_reduce(combined, op=dist.ReduceOp.SUM if op == "sum" else dist.ReduceOp.MAX, group=self._dp_group)
        return combined

    def named_weights(self, dtype: torch.dtype | None = None) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield every weight whole on every rank; run it to its end on all of them.

        Args:
            dtype: Dtype wanted; None for the master dtype.

        Yields:
            HF name, tensor, adapters merged in; tied weights once, under the input embedding.
        """
        yield from named_full_weights(self.module, dtype)

    def offload(self, weights: bool = True, optimizer: bool = True) -> None:
        """Move shards to host memory; nothing to do on the CPU or under the CPU-offload policy.

        Args:
            weights: Move the weights.
            optimizer: Move the optimizer states.
        """
        self._move(torch.device("cpu"), weights, optimizer)
        release_memory(self.device)

    def onload(self, weights: bool = True, optimizer: bool = True) -> None:
        """Move shards back to the device.

        Args:
            weights: Move the weights.
            optimizer: Move the optimizer states.
        """
        self._move(self.device, weights, optimizer)

    def _move(self, target: torch.device, weights: bool, optimizer: bool) -> None:
        if self.device.type == "cpu" or self.spec.sharding.cpu_offload:
            return
        if weights:
            reshard_all(self.module)
            self.module.to(target)
        if optimizer and self._optimizer is not None:
            for state in self._optimizer.state.values():
                state.update({k: v.to(target) for k, v in state.items() if isinstance(v, torch.Tensor)})

    def save(self, folder: str) -> None:
        """Write a sharded checkpoint.

        Args:
            folder: Where to.
        """
        save_checkpoint(folder, self.module, self._optimizer, self._num_steps, self.device)

    def load(self, folder: str) -> None:
        """Read a sharded checkpoint, written on any number of ranks.

        Args:
            folder: Where from.
        """
        self._num_steps = load_checkpoint(folder, self.module, self._optimizer, self.device)

    def export_hf(self, folder: str, dtype: torch.dtype | None = None) -> None:
        """Write config and whole weights in HF format, and adapters also by themselves; rank 0 writes.

        Args:
            folder: Where to; adapters in peft's format go to its folder `adapter`.
            dtype: Dtype of the file; None for the compute dtype.
        """
        dtype = dtype or getattr(torch, self.spec.precision.compute)
        is_writer = dist.get_rank() == 0
        write_hf_folder(folder, self.module.model, self.named_weights(dtype), dtype, is_writer)
        if self.module.adapters is not None:
            weights = dict(named_full_adapters(self.module))
            if is_writer:
                write_adapters(f"{folder}/adapter", self.module.adapters, self.spec.model_path, weights)
        dist.barrier()
