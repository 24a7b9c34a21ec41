# SPDX-License-Identifier: Apache-2.0
"""Watches for a run that no longer trains: optimizer steps skipped because gradients were NaN or infinite."""

from __future__ import annotations

from collections.abc import Mapping

from verl.utils.errors import UserError

_KEY = "trainer.max_skipped_steps"
_POLICY_ADVICE = (
    "Look at actor/grad_norm, reward/* and rollout/log_prob_diff/max in metrics.jsonl; a smaller "
    "actor_rollout_ref.actor.optim.lr and float32 help most often. Started again, the run goes on from its newest "
    "checkpoint; if its log-probs are NaN already, name an earlier one (trainer.resume_mode=resume_path)"
)


class SkippedSteps:
    """Counts training steps in a row in which every optimizer step was skipped.

    Example:
        >>> skipped = SkippedSteps(max_in_a_row=3)
        >>> metrics |= skipped.count(metrics)
        >>> skipped.raise_if_stuck()
    """

    def __init__(self, max_in_a_row: int, prefix: str = "actor", advice: str = _POLICY_ADVICE) -> None:
        """Start at zero.

        Args:
            max_in_a_row: Number at which the run counts as stuck; 0 = never.
            prefix: First part of the names of the update's metrics.
            advice: What the user can do, a sentence without its full stop.
        """
        self._max_in_a_row = max_in_a_row
        self._name = f"{prefix}/skipped_steps"
        self._made_name = f"{prefix}/optimizer_steps"
        self._advice = advice
        self._in_a_row = 0
        self._total = 0

    def count(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Take in one training step.

        Args:
            metrics: Of the step, with `<prefix>/optimizer_steps` (skipped ones included) and
                `<prefix>/skipped_steps`. A step without any optimizer step (no row was left to train on) says nothing
                either way.

        Returns:
            `<prefix>/skipped_steps/sum`, all since the run was started or resumed; `<prefix>/skipped_steps/in_a_row`,
            training steps in a row in which nothing was learnt.
        """
        made, skipped = metrics.get(self._made_name, 0.0), metrics.get(self._name, 0.0)
        self._total += int(skipped)
        if made:
            self._in_a_row = self._in_a_row + 1 if skipped == made else 0
        return {f"{self._name}/sum": float(self._total), f"{self._name}/in_a_row": float(self._in_a_row)}

    @property
    def is_stuck(self) -> bool:
        """Whether the last `max_in_a_row` training steps changed no weight."""
        return bool(self._max_in_a_row) and self._in_a_row >= self._max_in_a_row

    def raise_if_stuck(self) -> None:
        """End a run that no longer trains; call it when the metrics are written.

        Raises:
            UserError: The last `max_in_a_row` training steps changed no weight.
        """
        if not self.is_stuck:
            return
        raise UserError.for_key(
            _KEY,
            self._max_in_a_row,
            f"stopped, gradients were NaN or infinite in every optimizer step of the last {self._in_a_row} training "
            "steps, so the weights no longer change",
            self._advice,
        )
