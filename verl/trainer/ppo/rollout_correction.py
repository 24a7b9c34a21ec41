# SPDX-License-Identifier: Apache-2.0
"""Stage 4's first half: old log-probs, and what is done where the sampler's differ from them.

consumes   the batch of prompts and responses with the sampler's log-probs
produces   `old_log_probs`, and `entropys` unless the old ones are the sampler's; `rollout_is_weights` if there are any;
           nothing where the old log-probs are those of the update's own forward pass
waits for  the policy ranks, where they compute the old log-probs here
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from verl.algorithms.rollout_correction import importance_weights
from verl.config.algorithm import RolloutCorrectionConfig
from verl.protocol import DataProto
from verl.trainer.ppo.metric_utils import compute_mismatch_metrics
from verl.workers.correction_specs import correction_settings

_OF_THE_UPDATE = {
    "policy/entropy/mean": "actor/policy_entropy",
    "rollout/log_prob_diff/mean": "actor/rollout_log_prob_diff",
    "rollout/log_prob_diff/max": "actor/rollout_log_prob_diff_max",
    "rollout/ratio/mean": "actor/rollout_ratio",
    "rollout/kl_to_trainer/mean": "actor/rollout_k3",
    "rollout/chi2_to_trainer/mean": "actor/rollout_chi2",
}
"""The same quantities, counted in the update's forward pass."""


class RolloutCorrection:
    """Old log-probs and importance weights of a training step.

    Example:
        >>> correction = RolloutCorrection(config.algorithm.rollout_correction)
        >>> batch = batch.union(correction.old_log_probs(batch, runtime.actor))
    """

    def __init__(self, config: RolloutCorrectionConfig, needs_old_log_probs: bool = True) -> None:
        """Read the settings.

        Args:
            config: The section `algorithm.rollout_correction`.
            needs_old_log_probs: See `PPOTrainerConfig`; off: the update takes those of its own forward pass.
        """
        self._needs_old_log_probs = needs_old_log_probs
        self._is_bypassed = config.bypass_old_log_probs
        self._settings = correction_settings(config)

    def old_log_probs(self, batch: DataProto, actor: Any) -> DataProto:
        """Compute the old log-probs, or take the sampler's.

        Args:
            batch: [S] rows after the rollout.
            actor: The policy ranks.

        Returns:
            The columns named above.
        """
        if not self._needs_old_log_probs:
            return DataProto.from_dict(tensors={}, non_tensors={})
        if self._is_bypassed:  # weights are then made in the loss, from the policy in training
            return DataProto.from_dict(tensors={"old_log_probs": batch.batch["rollout_log_probs"]})
        computed: DataProto = actor.compute_log_prob(batch)
        if not self._settings.is_on:
            return computed
        columns = (computed.batch["old_log_probs"], batch.batch["rollout_log_probs"], batch.batch["response_mask"])
        weights, _, _ = importance_weights(*columns, self._settings)
        return computed.union(DataProto.from_dict(tensors={"rollout_is_weights": weights}))

    def metrics(self, batch: DataProto, update: Mapping[str, float]) -> dict[str, float]:
        """How far the sampler is from the trainer, and what the correction did.

        Args:
            batch: [S] rows after stage 4.
            update: What the update logged: the numbers of its own forward pass, where that gave the old log-probs.

        Returns:
            Metrics `rollout/...`, and `policy/entropy/mean` where the update counted it; none when the old log-probs
            are the sampler's: the update then logs `actor/rollout_...`.
        """
        if not self._needs_old_log_probs:
            return {name: update[found] for name, found in _OF_THE_UPDATE.items() if found in update}
        if self._is_bypassed:
            return {}
        metrics = compute_mismatch_metrics(batch)
        if self._settings.is_on:
            rows = batch.batch
            columns = (rows["old_log_probs"], rows["rollout_log_probs"], rows["response_mask"])
            metrics |= importance_weights(*columns, self._settings)[2]
        return metrics
