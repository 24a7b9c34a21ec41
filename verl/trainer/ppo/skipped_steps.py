# SPDX-License-Identifier: Apache-2.0
"""Watches for a run that no longer trains: optimizer steps skipped because gradients were NaN or infinite."""

from __future__ import annotations

from collections.abc import Mapping

from verl.utils.errors import UserError

_KEY = "trainer.max_skipped_steps"


class SkippedSteps:
    """Counts training steps in a row in which every optimizer step was skipped.

    Example:
        >>> skipped = SkippedSteps(max_in_a_row=3)
        >>> metrics |= skipped.count(metrics)
        >>> skipped.raise_if_stuck()
    """

    def __init__(self, max_in_a_row: int) -> None:
        """Start at zero.

        Args:
            max_in_a_row: Number at which `raise_if_stuck` raises; 0 = never.
        """
        self._max_in_a_row = max_in_a_row
        self._in_a_row = 0
        self._total = 0

    def count(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Take in one training step.

        Args:
            metrics: Of the step, with `actor/optimizer_steps` (skipped ones included) and `actor/skipped_steps`.
                A step without any optimizer step (no row was left to train on) says nothing either way.

        Returns:
            `actor/skipped_steps/sum`, all since the run was started or resumed; `actor/skipped_steps/in_a_row`,
            training steps in a row in which nothing was learnt.
        """
        made, skipped = metrics.get("actor/optimizer_steps", 0.0), metrics.get("actor/skipped_steps", 0.0)
        self._total += int(skipped)
        if made:
            self._in_a_row = self._in_a_row + 1 if skipped == made else 0
        return {"actor/skipped_steps/sum": float(self._total), "actor/skipped_steps/in_a_row": float(self._in_a_row)}

    def raise_if_stuck(self) -> None:
        """End a run that no longer trains; call it when the metrics are written.

        Raises:
            UserError: The last `max_in_a_row` training steps changed no weight.
        """
        if not self._max_in_a_row or self._in_a_row < self._max_in_a_row:
            return
        raise UserError.for_key(
            _KEY,
            self._max_in_a_row,
            f"stopped, gradients were NaN or infinite in every optimizer step of the last {self._in_a_row} training "
            "steps, so the weights no longer change",
            "Look at actor/grad_norm, reward/* and rollout/log_prob_diff/max in metrics.jsonl; a smaller "
            "actor_rollout_ref.actor.optim.lr and float32 help most often. Started again, the run goes on from its "
            "newest checkpoint",
        )
