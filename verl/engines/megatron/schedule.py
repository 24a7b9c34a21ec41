# SPDX-License-Identifier: Apache-2.0
"""Micro-batches through Megatron's pipeline schedules, and the last stage's answers to every stage. It knows no loss.

Megatron divides losses by micro-batches and ranks unless a loss comes with a token count and the model's config says
`calculate_per_token_loss`. Both hold here, so shares are summed as they are. Gradients are reduced over the
ranks later, by the optimizer step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import nn

from verl.engines.base import HeadOutputs, HeadRequest
from verl.engines.megatron.parallel import ParallelLayout
from verl.engines.packing import PackedSequences, padded_to_multiple

# What the last stage makes of one micro-batch: a scalar to differentiate (read only when training), and what to keep.
Finish = Callable[[PackedSequences, HeadOutputs], tuple[torch.Tensor, Any]]


@dataclass(frozen=True)
class Pipeline:
    """A model on its stages.

    Args:
        module: This rank's model, wrapped for data parallelism or not.
        outputs: Runs the head of the last stage.
        layout: This rank's place.
        device: Where micro-batches go.
        multiple: Tokens of a micro-batch are padded to a multiple of it.
    """

    module: nn.Module
    outputs: Callable[[torch.Tensor, PackedSequences, HeadRequest], HeadOutputs]
    layout: ParallelLayout
    device: torch.device
    multiple: int = 1

    def run(
        self, micro_batches: Sequence[PackedSequences], request: HeadRequest, finish: Finish, is_training: bool
    ) -> list[Any]:
        """Run every micro-batch forward, and backward when training.

        Args:
            micro_batches: Equally many on every rank; the same on the ranks of one pipeline.
            request: What the head is to compute.
            finish: Called on the last stage for each micro-batch.
            is_training: Whether gradients are wanted.

        Returns:
            What `finish` kept of each micro-batch; empty on the stages before the last.
        """

        def forward_step(data: Iterator[PackedSequences], model: nn.Module) -> tuple[torch.Tensor, Callable[..., Any]]:
            packed = next(data).to(self.device)
            padded = padded_to_multiple(packed, self.multiple)

            def loss_func(hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, Any]:
                loss, kept = finish(packed, self.outputs(hidden, padded, request))
                return loss, torch.zeros((), dtype=torch.int, device=self.device), kept

            return model(padded), loss_func

        kept: list[Any] = get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=iter(micro_batches),
            model=[self.module],
            num_microbatches=len(micro_batches),
            seq_length=1,  # lengths vary: stages tell each other the shapes
            micro_batch_size=1,
            forward_only=not is_training,
        )
        return kept

    def share(self, kept: list[Any]) -> list[Any]:
        """Hand what the last stage kept to every stage.

        Args:
            kept: From `run`.

        Returns:
            The last stage's list, on every rank; tensors lie on the CPU if there are several stages.
        """
        if self.layout.pp_size == 1:
            return kept
        box: list[Any] = [_to_cpu(kept)]
        last = self.layout.stage_rank(self.layout.pp_size - 1)
        dist.broadcast_object_list(box, src=last, group=self.layout.pp_group, device=torch.device("cpu"))
        found: list[Any] = box[0]
        return found


def _to_cpu(kept: list[Any]) -> list[Any]:
    return [
        {name: value.cpu() if isinstance(value, torch.Tensor) else value for name, value in each.items()}
        for each in kept
    ]
