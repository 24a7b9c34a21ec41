# SPDX-License-Identifier: Apache-2.0
"""The learning rate as a pure function of the optimizer step; it knows no optimizer."""

from __future__ import annotations

import math

from verl.engines.base import OptimizerSpec
from verl.utils.errors import UserError


def lr_at(step: int, spec: OptimizerSpec) -> float:
    """Compute the learning rate of one optimizer step.

    The warm-up rises from lr / warmup_steps to lr: unlike the schedulers of transformers it never spends a step at
    rate zero. What follows runs from lr at the warm-up's end to `min_lr_ratio * lr` at `total_steps`, and stays there.

    Args:
        step: Optimizer steps already done.
        spec: The schedule.

    Returns:
        The rate.

    Raises:
        UserError: A decaying schedule does not know the run's length.
    """
    if step < spec.warmup_steps:
        return spec.lr * (step + 1) / spec.warmup_steps
    if spec.schedule == "constant":
        return spec.lr
    if spec.total_steps <= spec.warmup_steps:
        raise UserError.for_key(
            "optim.lr_warmup_steps",
            spec.warmup_steps,
            f"must be below the run's {spec.total_steps} optimizer steps with lr_scheduler_type={spec.schedule}",
            "Shorten the warm-up or lengthen the run",
        )
    progress = min(1.0, (step - spec.warmup_steps) / (spec.total_steps - spec.warmup_steps))
    share = 1.0 - progress if spec.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return spec.lr * (spec.min_lr_ratio + (1.0 - spec.min_lr_ratio) * share)
