# SPDX-License-Identifier: Apache-2.0
"""Metrics of one training step, named stage/what/reduction. Pure functions over a batch."""

from __future__ import annotations

import torch

from verl.algorithms.rollout_correction import bounded_exp, masked_log_ratio, mismatch_sums
from verl.protocol import DataProto


def compute_data_metrics(batch: DataProto, max_response_length: int) -> dict[str, float]:
    """Lengths, rewards, advantages.

    Args:
        batch: [S] rows after stage 6.
        max_response_length: The limit in tokens.

    Returns:
        Metrics.
    """
    columns = batch.batch
    mask = columns["response_mask"].bool()
    response_lengths = mask.sum(dim=1).float()
    prompt_lengths = columns["prompt_mask"].sum(dim=1).float()
    advantages = columns["advantages"][mask]
    metrics = {
        "reward/accuracy/mean": float(columns["is_correct"].float().mean()),
        "reward/token_level_rewards/mean": float(columns["token_level_rewards"].sum(dim=1).mean()),
        "advantage/kept/share": float(columns["is_kept"].float().mean()),
        "advantage/abs/mean": float(advantages.abs().mean()) if advantages.numel() else 0.0,
        "response/cut_at_limit/share": float((response_lengths >= max_response_length).float().mean()),
    }
    metrics |= _spread("reward/score", columns["token_level_scores"].sum(dim=1))
    metrics |= _spread("response/length", response_lengths)
    metrics |= _spread("prompt/length", prompt_lengths)
    return metrics


def compute_mismatch_metrics(batch: DataProto) -> dict[str, float]:
    """How far the trainer's log-probs are from those of the engine that sampled.

    Args:
        batch: [S] rows with `old_log_probs` and `rollout_log_probs`.

    Returns:
        Absolute difference per token, mean and max; ratio trainer / rollout, mean, min and max (a mean far from 1 is a
        bias); the mean k3 estimate of KL(rollout || trainer) and that of chi^2(trainer || rollout), the variance of
        the ratio. See `verl.algorithms.rollout_correction.mismatch_sums`.
    """
    mask = batch.batch["response_mask"].bool()
    num_tokens = int(mask.sum())
    if not num_tokens:
        return {}
    columns = (batch.batch["old_log_probs"], batch.batch["rollout_log_probs"], mask)
    sums = {name: float(total) / num_tokens for name, total in mismatch_sums(*columns).items()}
    log_ratio = masked_log_ratio(*columns)[mask]
    return {
        "rollout/log_prob_diff/mean": sums["log_prob_diff"],
        "rollout/log_prob_diff/max": float(log_ratio.abs().max()),
        "rollout/ratio/mean": sums["ratio"],
        "rollout/ratio/min": float(bounded_exp(log_ratio.min())),
        "rollout/ratio/max": float(bounded_exp(log_ratio.max())),
        "rollout/kl_to_trainer/mean": sums["k3"],
        "rollout/chi2_to_trainer/mean": sums["chi2"],
    }


def compute_entropy_metrics(batch: DataProto) -> dict[str, float]:
    """Entropy of the policy's distribution at the tokens it was sampled at.

    Args:
        batch: [S] rows; the column `entropys` is there when the trainer computed the old log-probs itself.

    Returns:
        The mean over tokens, unit: nats; nothing without the column.
    """
    if "entropys" not in batch.batch.keys():
        return {}
    entropy = batch.batch["entropys"][batch.batch["response_mask"].bool()]
    return {"policy/entropy/mean": float(entropy.mean()) if entropy.numel() else 0.0}


def compute_throughput_metrics(batch: DataProto, step_s: float, num_devices: int) -> dict[str, float]:
    """Tokens and samples per second of a whole training step.

    Args:
        batch: [S] rows.
        step_s: Seconds of the step.
        num_devices: Devices of all pools.

    Returns:
        Metrics; tokens count prompts and responses.
    """
    tokens = int(batch.batch["prompt_mask"].sum() + batch.batch["response_mask"].sum())
    return {
        "perf/tokens/sum": float(tokens),
        "perf/tokens_per_s": tokens / step_s,
        "perf/tokens_per_s_per_device": tokens / step_s / num_devices,
        "perf/samples_per_s": len(batch) / step_s,
    }


def _spread(name: str, values: torch.Tensor) -> dict[str, float]:
    return {
        f"{name}/mean": float(values.mean()),
        f"{name}/min": float(values.min()),
        f"{name}/max": float(values.max()),
    }
