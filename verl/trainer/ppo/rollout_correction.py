# SPDX-License-Identifier: Apache-2.0
"""Stage 4's first half: old log-probs, and what is done where the sampler's differ from them.

consumes   the batch of prompts and responses with the sampler's log-probs
produces   `old_log_probs`; `entropys` unless the old ones are the sampler's; `rollout_is_weights` when there are any
waits for  the policy ranks, unless the old ones are the sampler's
"""

from __future__ import annotations

from typing import Any

from verl.algorithms.rollout_correction import importance_weights
from verl.config.algorithm import RolloutCorrectionConfig
from verl.protocol import DataProto
from verl.trainer.ppo.metric_utils import compute_mismatch_metrics
from verl.workers.correction_specs import correction_settings


class RolloutCorrection:
    """Old log-probs and importance weights of a training step.

    Example:
        >>> correction = RolloutCorrection(config.algorithm.rollout_correction)
        >>> batch = batch.union(correction.old_log_probs(batch, runtime.actor))
    """

    def __init__(self, config: RolloutCorrectionConfig) -> None:
        """Read the settings.

        Args:
            config: The section `algorithm.rollout_correction`.
        """
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
        if self._is_bypassed:  # weights are then made in the loss, from the policy in training
            return DataProto.from_dict(tensors={"old_log_probs": batch.batch["rollout_log_probs"]})
        computed: DataProto = actor.compute_log_prob(batch)
        if not self._settings.is_on:
            return computed
        columns = (computed.batch["old_log_probs"], batch.batch["rollout_log_probs"], batch.batch["response_mask"])
        weights, _, _ = importance_weights(*columns, self._settings)
        return computed.union(DataProto.from_dict(tensors={"rollout_is_weights": weights}))

    def metrics(self, batch: DataProto) -> dict[str, float]:
        """How far the sampler is from the trainer, and what the correction did.

        Args:
            batch: [S] rows after stage 4.

        Returns:
            Metrics `rollout/...`; none when the old log-probs are the sampler's: the update then logs
            `actor/rollout_...`.
        """
        if self._is_bypassed:
            return {}
        metrics = compute_mismatch_metrics(batch)
        if self._settings.is_on:
            rows = batch.batch
            columns = (rows["old_log_probs"], rows["rollout_log_probs"], rows["response_mask"])
            metrics |= importance_weights(*columns, self._settings)[2]
        return metrics
