# SPDX-License-Identifier: Apache-2.0
"""AdamW over Megatron's gradient buffers, plain or sharded over the data-parallel ranks. It knows no file.

Megatron's own `step` cannot be told to leave the weights alone when gradients are not finite, so its parts are called
one by one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from torch import nn

from verl.engines.base import EngineSpec, OptimizerReport, OptimizerSpec
from verl.engines.lr_schedule import lr_at

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class AdamEntry:
    """One parameter of the plain optimizer.

    Args:
        parameter: The model's.
        master: The 32-bit tensor that is updated; the parameter itself when it has 32 bits.
        state: Moments and step of AdamW; empty before the first step.
    """

    parameter: nn.Parameter
    master: torch.Tensor
    state: dict[str, torch.Tensor]


class MegatronAdamW:
    """The optimizer of one engine.

    Args:
        optimizer_spec: AdamW and its schedule.
        spec: The engine: precision, and whether states are sharded.
        ddp: The wrapped model.

    Attributes:
        num_steps: Steps done, skipped ones not counted.
        is_sharded: Whether each rank holds states of a part of the weights only.
    """

    def __init__(self, optimizer_spec: OptimizerSpec, spec: EngineSpec, ddp: DistributedDataParallel) -> None:
        self.spec = optimizer_spec
        self.num_steps = 0
        self.is_sharded = spec.megatron.distributed_optimizer
        self._module: nn.Module = ddp.module
        dtype = getattr(torch, spec.precision.compute)
        config = OptimizerConfig(
            optimizer="adam",
            lr=optimizer_spec.lr,
            weight_decay=optimizer_spec.weight_decay,
            adam_beta1=optimizer_spec.betas[0],
            adam_beta2=optimizer_spec.betas[1],
            adam_eps=optimizer_spec.eps,
            clip_grad=0.0,  # done here
            bf16=dtype == torch.bfloat16,
            params_dtype=dtype,
            use_distributed_optimizer=self.is_sharded,
        )
        # No overrides: weight decay holds for every parameter, as in the other engines; Megatron would spare biases.
        self._megatron = get_megatron_optimizer(config, [ddp], config_overrides={}).chained_optimizers[0]

    @property
    def adamw(self) -> torch.optim.Optimizer:
        """torch's optimizer inside, over this rank's 32-bit tensors."""
        inner: torch.optim.Optimizer = self._megatron.optimizer
        return inner

    def step(self) -> OptimizerReport:
        """Clip to the largest norm, step, advance the schedule, forget the gradient.

        Returns:
            Norm before clipping, rate, and whether the step was skipped because the gradient was not finite.
        """
        megatron = self._megatron
        lr = lr_at(self.num_steps, self.spec)
        megatron.prepare_grads()
        norm = float(megatron.get_grad_norm())
        if math.isfinite(norm):
            clip_grad_by_total_norm_fp32(megatron.get_parameters(), self.spec.clip_grad, norm)
            for group in self.adamw.param_groups:
                group["lr"] = lr
            megatron.step_with_ready_grads()
            self.num_steps += 1
        megatron.zero_grad()
        return OptimizerReport(norm, lr, is_skipped=not math.isfinite(norm))

    def masters(self) -> list[torch.Tensor]:
        """This rank's tensors that AdamW updates, in its order."""
        return [tensor.detach() for group in self.adamw.param_groups for tensor in group["params"]]

    def tensors(self) -> Iterator[torch.Tensor]:
        """Yield everything of this rank that is no part of the model: moments, and 32-bit copies of 16-bit weights."""
        if self._megatron.config.bf16:
            yield from self.masters()
        for state in self.adamw.state.values():
            yield from (value for value in state.values() if isinstance(value, torch.Tensor))

    def entries(self) -> Iterator[AdamEntry]:
        """Yield the plain optimizer's entries, in the order of the model's parameters."""
        for parameter in self._module.parameters():
            master = getattr(parameter, "main_param", parameter)
            yield AdamEntry(parameter, master.detach(), self.adamw.state[master])

    def start_state(self) -> None:
        """Give every entry of the plain optimizer moments of zero, to be filled from a checkpoint."""
        for entry in self.entries():
            entry.state["step"] = torch.tensor(0.0)
            entry.state.update({name: torch.zeros_like(entry.master) for name in MOMENTS})

    def resume_at(self, num_steps: int) -> None:
        """Go on as after some steps, once weights and moments are in place.

        Args:
            num_steps: Steps done; 0 forgets the moments.
        """
        self.num_steps = num_steps
        if num_steps == 0:
            self.adamw.state.clear()
            self._megatron.reload_model_params()
        for state in self.adamw.state.values():
            state["step"].fill_(float(num_steps))

    def rank_state(self) -> dict[str, Any]:
        """Read this rank's share of a sharded optimizer: 32-bit tensors and states."""
        return {"masters": self.masters(), "state": self.adamw.state_dict()["state"]}

    def load_rank_state(self, state: dict[str, Any]) -> None:
        """Put back what `rank_state` read, on the same layout.

        Args:
            state: From `rank_state`.
        """
        for master, saved in zip(self.masters(), state["masters"], strict=True):
            master.copy_(saved)
        groups = self.adamw.state_dict()["param_groups"]
        self.adamw.load_state_dict({"state": state["state"], "param_groups": groups})
