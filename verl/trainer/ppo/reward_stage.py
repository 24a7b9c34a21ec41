# SPDX-License-Identifier: Apache-2.0
"""Stage 5 of a training step: scores into the batch's columns, then onto the tokens. Starts and waits for nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from verl.algorithms.kl import AdaptiveKLController, FixedKLController, KLController
from verl.algorithms.registry import adv_estimator_columns
from verl.batch_schema import Stage, require
from verl.config import PPOTrainerConfig
from verl.protocol import DataProto
from verl.rewards.credit import CreditRule, ScoreColumns, place_rewards
from verl.rewards.loop import ScoredBatch
from verl.rewards.types import ScoredResponse
from verl.trainer.ppo.advantage import apply_kl_penalty


class RewardStage:
    """Turns scores into token-level rewards.

    Example:
        >>> stage = RewardStage(config)
        >>> batch = batch.union(stage.score_columns(batch, scores, training_step=1))
        >>> rewards, metrics = stage.place(batch, training_step=1)
    """

    def __init__(self, config: PPOTrainerConfig) -> None:
        """Read the blending rule.

        Args:
            config: The run's configuration.
        """
        self._config = config
        self._group_size = config.actor_rollout_ref.rollout.n
        self._wants_greedy = "reward_baselines" in adv_estimator_columns(config.algorithm.adv_estimator)
        self.kl_controller = _kl_controller(config)

    def score_columns(self, batch: DataProto, scores: ScoredBatch, training_step: int) -> DataProto:
        """Lay the scores out in the batch's row order.

        Args:
            batch: [S] rows with `uid` and `sample_index`.
            scores: Of every response.
            training_step: Number of the training step, from 1: the weight of Eq. 12 may follow a schedule.

        Returns:
            The score columns of stage 3, `is_dropped`, and `reward_baselines` where greedy answers were asked for.
        """
        columns = ScoreColumns.of(responses_of(batch, scores))
        uids = [str(uid) for uid in batch.non_tensor_batch["uid"]]
        tensors = {
            "rule_scores": torch.from_numpy(columns.rule_scores),
            "overlong_penalty": torch.from_numpy(columns.overlong_penalty),
            "is_correct": torch.from_numpy(columns.is_correct),
            "traj_scores": torch.from_numpy(columns.traj_scores),
            "is_dropped": torch.tensor([uid in scores.dropped_groups for uid in uids], dtype=torch.bool),
        }
        if self._wants_greedy:
            tensors["reward_baselines"] = self._greedy_rewards(uids, scores, training_step)
        ragged = {name: getattr(columns, name) for name in ("step_scores", "step_ends", "prm_status")}
        return DataProto.from_dict(tensors=tensors, non_tensors=ragged)

    def place(self, batch: DataProto, training_step: int) -> tuple[DataProto, dict[str, float]]:
        """Place the rewards on the tokens and, if it belongs into the reward, subtract the KL penalty.

        Args:
            batch: [S] rows with the score columns.
            training_step: Number of the training step, from 1.

        Returns:
            The columns `token_level_scores` and `token_level_rewards`, [S, R] float32, and metrics.
        """
        require(batch, Stage.REWARD)
        tensors, ragged = batch.batch, batch.non_tensor_batch
        columns = ScoreColumns(
            rule_scores=tensors["rule_scores"].numpy(),
            overlong_penalty=tensors["overlong_penalty"].numpy(),
            is_correct=tensors["is_correct"].numpy(),
            traj_scores=tensors["traj_scores"].numpy(),
            **{name: ragged[name] for name in ("step_scores", "step_ends", "prm_status")},
        )
        scores = place_rewards(columns, tensors["response_mask"], self._rule(training_step))
        placed = DataProto.from_dict(tensors={"token_level_scores": scores})
        algorithm = self._config.algorithm
        if not algorithm.use_kl_in_reward:
            return placed.union(DataProto.from_dict(tensors={"token_level_rewards": scores})), {}
        rewards, metrics = apply_kl_penalty(batch.union(placed), self.kl_controller, algorithm.kl_penalty)
        return placed.union(rewards), metrics

    def beta(self, training_step: int) -> float:
        """Return the weight of Eq. 12 in force.

        Args:
            training_step: Number of the training step, from 1.
        """
        return self._config.reward_model.process_reward.beta_at(training_step - 1)

    def _rule(self, training_step: int) -> CreditRule:
        process = self._config.reward_model.process_reward
        return CreditRule(
            alpha=process.alpha,
            beta=self.beta(training_step),
            aggregation=process.aggregation,
            gate=process.gate,
            mode=process.mode,
            score_space=process.score_space,
        )

    def _greedy_rewards(self, uids: list[str], scores: ScoredBatch, training_step: int) -> torch.Tensor:
        """Return [S] float32: Eq. 12 of the greedy answer to each row's prompt."""
        greedy = [scores.by_response[uid, self._group_size] for uid in uids]
        width = 1 + max((int(np.max(one.step_ends, initial=0)) for one in greedy), default=0)
        # only the sum is wanted, so where a greedy answer's row ends does not matter
        anywhere = torch.ones((len(greedy), width), dtype=torch.int64)
        return place_rewards(ScoreColumns.of(greedy), anywhere, self._rule(training_step)).sum(dim=1)


def responses_of(batch: DataProto, scores: ScoredBatch) -> list[ScoredResponse]:
    """Find the scores of each row.

    Args:
        batch: [S] rows with `uid` and `sample_index`.
        scores: Of every response.

    Returns:
        S records in row order.
    """
    names = zip(batch.non_tensor_batch["uid"], batch.non_tensor_batch["sample_index"], strict=True)
    return [scores.by_response[str(uid), int(index)] for uid, index in names]


def without_rows(batch: DataProto, is_out: torch.Tensor) -> DataProto:
    """Mask rows out of the update: their tokens count nowhere.

    Args:
        batch: [S] rows after stage 6.
        is_out: [S] bool.

    Returns:
        The tensors of the batch; the batch itself where no row is out.
    """
    if not bool(is_out.any()):
        return batch
    columns: dict[str, Any] = {key: value for key, value in batch.batch.items() if key != "response_mask"}
    masked = batch.batch["response_mask"] * ~is_out[:, None]
    return DataProto.from_dict(tensors=columns | {"response_mask": masked})


def _kl_controller(config: PPOTrainerConfig) -> KLController:
    control = config.algorithm.kl_ctrl
    if control.type == "adaptive":
        return AdaptiveKLController(control.kl_coef, control.target_kl, control.horizon)
    return FixedKLController(control.kl_coef)
