# SPDX-License-Identifier: Apache-2.0
"""Stage 5's KL penalty and stage 6: from the columns of a batch to the tensors of an estimator, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from verl.algorithms import get_adv_estimator_fn, kl_penalty
from verl.algorithms.inputs import AdvantageInputs, EstimatorOptions, group_numbers, pad_steps
from verl.algorithms.kl import KLController, kl_in_reward
from verl.algorithms.prof import PROF_COLUMNS, ProfSettings, prof_filter
from verl.algorithms.registry import adv_estimator_columns
from verl.batch_schema import Stage, require
from verl.config import AlgorithmConfig
from verl.protocol import DataProto

_STEP_COLUMNS = frozenset({"step_scores", "step_ends", "step_mask"})
_PLAIN_COLUMNS = ("is_correct", "reward_baselines")


def apply_kl_penalty(batch: DataProto, controller: KLController, kl_form: str) -> tuple[DataProto, dict[str, float]]:
    """Subtract the KL to the reference from the scores, token by token.

    Args:
        batch: [S] rows with `token_level_scores`, `old_log_probs`, `ref_log_prob`, `response_mask`.
        controller: Holds the coefficient; adapted afterwards.
        kl_form: A name of `verl.algorithms.kl.KL_FORMS`.

    Returns:
        The column `token_level_rewards` [S, R], and metrics.
    """
    require(batch, Stage.REWARD, also=("old_log_probs", "ref_log_prob"))
    columns = batch.batch
    kl = kl_penalty(columns["old_log_probs"], columns["ref_log_prob"], kl_form)
    rewards, mean_kl = kl_in_reward(columns["token_level_scores"], kl, columns["response_mask"], controller.value)
    metrics = {"reward/kl_penalty/mean": float(mean_kl), "reward/kl_coef": controller.value}
    controller.update(float(mean_kl), len(batch))
    return DataProto.from_dict(tensors={"token_level_rewards": rewards}), metrics


def compute_advantage(batch: DataProto, config: AlgorithmConfig, beta: float) -> DataProto:
    """Run the configured estimator.

    Args:
        batch: [S] rows after stage 5.
        config: Names the estimator and its normalisation.
        beta: Weight of the process part at this training step.

    Returns:
        The columns `advantages` and `returns`, [S, R] float32, and `is_kept` [S] bool: false on the rows of dropped
        groups and on those that the group filter took out. The estimator does not see them; their advantages and
        returns are 0, and they belong into no loss.
    """
    is_filtered = config.group_filter.name == "prof"
    wanted = set(adv_estimator_columns(config.adv_estimator)) | set(PROF_COLUMNS if is_filtered else ())
    require(batch, Stage.ADVANTAGE, also=_columns_read(wanted))
    inputs = AdvantageInputs(
        token_level_rewards=batch.batch["token_level_rewards"],
        response_mask=batch.batch["response_mask"],
        group_index=group_numbers(batch.non_tensor_batch["uid"]),
        **_optional_columns(batch, wanted),
        beta=beta,
        norm_adv_by_std=config.norm_adv_by_std_in_grpo,
        options=_options(config),
    )
    is_dropped = batch.batch.get("is_dropped")
    is_kept = torch.ones(len(batch), dtype=torch.bool) if is_dropped is None else ~is_dropped
    if is_filtered:
        is_kept[is_kept.clone()] = prof_filter(inputs.only(is_kept), _filter_settings(config))
    columns = {name: torch.zeros_like(inputs.token_level_rewards) for name in ("advantages", "returns")}
    if bool(is_kept.any()):
        found = get_adv_estimator_fn(config.adv_estimator)(inputs.only(is_kept))
        for column, values in zip(columns.values(), found, strict=True):
            column[is_kept] = values
    return DataProto.from_dict(tensors=columns | {"is_kept": is_kept})


def compute_response_mask(responses: torch.Tensor, response_lengths: torch.Tensor) -> torch.Tensor:
    """Mark the tokens of right-padded responses.

    Args:
        responses: [S, R] int64.
        response_lengths: [S] int64, tokens, EOS included.

    Returns:
        [S, R] int64, 1 at response tokens.
    """
    columns = torch.arange(responses.shape[1], device=responses.device)
    return (columns[None, :] < response_lengths[:, None]).long()


def _options(config: AlgorithmConfig) -> EstimatorOptions:
    return EstimatorOptions(
        minform_temperature=config.grpo_minform.temperature,
        delta_clip=config.grpo_delta.clip,
        delta_delta=config.grpo_delta.delta,
        delta_eta=config.grpo_delta.eta,
        gdpo_batch_norm=config.gdpo.batch_norm,
    )


def _filter_settings(config: AlgorithmConfig) -> ProfSettings:
    chosen = config.group_filter
    return ProfSettings(keep=chosen.keep, format_penalty=chosen.format_penalty, max_steps=chosen.max_steps)


def _columns_read(wanted: set[str]) -> list[str]:
    """Columns of the batch from which the estimator's optional inputs are made."""
    steps = ["step_scores", "step_ends", "prm_status"] if wanted & _STEP_COLUMNS else []
    rule = ["rule_scores", "overlong_penalty"] if "rule_scores" in wanted else []
    return [*steps, *rule, *(name for name in _PLAIN_COLUMNS if name in wanted)]


def _optional_columns(batch: DataProto, wanted: set[str]) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    if wanted & _STEP_COLUMNS:
        scores, ends, mask = pad_steps(
            list(batch.non_tensor_batch["step_scores"]), list(batch.non_tensor_batch["step_ends"])
        )
        columns |= {"step_scores": scores, "step_ends": ends, "step_mask": mask}
        status = batch.non_tensor_batch["prm_status"]
        columns["is_scored"] = torch.from_numpy(np.isin(status.astype(str), ("scored", "retried")))
    if "rule_scores" in wanted:
        # r_out of Eq. 12: the verdict's reward with the length penalty
        columns["rule_scores"] = batch.batch["rule_scores"] + batch.batch["overlong_penalty"]
    return columns | {name: batch.batch[name] for name in _PLAIN_COLUMNS if name in wanted}
