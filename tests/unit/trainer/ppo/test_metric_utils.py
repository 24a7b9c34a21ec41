# SPDX-License-Identifier: Apache-2.0
"""Metrics of a hand-made batch; padding holds numbers that must not be counted."""

from __future__ import annotations

import math

import pytest
import torch

from verl.protocol import DataProto
from verl.trainer.ppo.metric_utils import (
    compute_data_metrics,
    compute_entropy_metrics,
    compute_mismatch_metrics,
    compute_throughput_metrics,
)


def batch() -> DataProto:
    return DataProto.from_dict(
        tensors={
            "prompt_mask": torch.tensor([[0, 1, 1], [1, 1, 1]]),
            "response_mask": torch.tensor([[1, 0, 0, 0], [1, 1, 1, 1]]),
            "is_correct": torch.tensor([True, False]),
            "is_kept": torch.tensor([False, True]),
            "token_level_scores": torch.tensor([[1.0, 0, 0, 0], [0.5, 0, 0, -2.0]]),
            "token_level_rewards": torch.tensor([[0.5, 0, 0, 0], [0.5, 0, 0, -2.5]]),
            "advantages": torch.tensor([[2.0, 99, 99, 99], [-1.0, -1.0, 0.0, 1.0]]),
            "old_log_probs": torch.tensor([[-1.0, 99, 99, 99], [-1.0, -2.0, -3.0, -4.0]]),
            "rollout_log_probs": torch.tensor([[-1.5, -99, -99, -99], [-1.0, -1.9, -3.0, -4.0]]),
        }
    )


def test_data_metrics_by_hand() -> None:
    metrics = compute_data_metrics(batch(), max_response_length=4)
    assert metrics == {
        "reward/accuracy/mean": 0.5,
        "reward/token_level_rewards/mean": -0.75,
        "advantage/kept/share": 0.5,
        "advantage/abs/mean": 1.0,
        "response/cut_at_limit/share": 0.5,
        "reward/score/mean": -0.25,
        "reward/score/min": -1.5,
        "reward/score/max": 1.0,
        "response/length/mean": 2.5,
        "response/length/min": 1.0,
        "response/length/max": 4.0,
        "prompt/length/mean": 2.5,
        "prompt/length/min": 2.0,
        "prompt/length/max": 3.0,
    }


def test_a_limit_nobody_reached_and_a_batch_without_tokens() -> None:
    assert compute_data_metrics(batch(), max_response_length=5)["response/cut_at_limit/share"] == 0.0
    empty = batch()
    empty.batch["response_mask"] = torch.zeros(2, 4, dtype=torch.int64)
    assert compute_data_metrics(empty, max_response_length=5)["advantage/abs/mean"] == 0.0
    assert compute_mismatch_metrics(empty) == {}


def test_mismatch_is_the_k3_estimate_of_the_kl_from_rollout_to_trainer() -> None:
    # log(trainer / rollout) of the five tokens: 0.5, 0, -0.1, 0, 0; k3 = ratio - 1 - log ratio
    metrics = compute_mismatch_metrics(batch())
    k3 = [math.exp(d) - 1 - d for d in (0.5, 0.0, -0.1, 0.0, 0.0)]
    assert metrics["rollout/log_prob_diff/mean"] == pytest.approx(0.6 / 5)
    assert metrics["rollout/log_prob_diff/max"] == pytest.approx(0.5)
    assert metrics["rollout/kl_to_trainer/mean"] == pytest.approx(sum(k3) / 5, rel=1e-4)
    ratios = [math.exp(d) for d in (0.5, 0.0, -0.1, 0.0, 0.0)]
    assert metrics["rollout/ratio/mean"] == pytest.approx(sum(ratios) / 5)
    assert metrics["rollout/ratio/min"] == pytest.approx(math.exp(-0.1))
    assert metrics["rollout/ratio/max"] == pytest.approx(math.exp(0.5))
    assert metrics["rollout/chi2_to_trainer/mean"] == pytest.approx(sum(r * r for r in ratios) / 5 - 1, rel=1e-4)


def test_entropy_is_logged_where_the_trainer_computed_it() -> None:
    rows = batch()
    assert compute_entropy_metrics(rows) == {}
    rows.batch["entropys"] = torch.tensor([[1.0, 99, 99, 99], [2.0, 3.0, 4.0, 5.0]])
    assert compute_entropy_metrics(rows) == {"policy/entropy/mean": 3.0}


def test_k3_estimates_the_true_kl() -> None:
    # tokens drawn exactly as often as the rollout distribution says: the mean is then the sum over the vocabulary
    rollout, trainer = [0.5, 0.25, 0.25], [0.25, 0.25, 0.5]
    tokens = [0, 0, 1, 2]
    rows = DataProto.from_dict(
        tensors={
            "response_mask": torch.ones(1, 4, dtype=torch.int64),
            "rollout_log_probs": torch.tensor([[math.log(rollout[token]) for token in tokens]]),
            "old_log_probs": torch.tensor([[math.log(trainer[token]) for token in tokens]]),
        }
    )
    kl = sum(p * math.log(p / q) for p, q in zip(rollout, trainer, strict=True))
    assert compute_mismatch_metrics(rows)["rollout/kl_to_trainer/mean"] == pytest.approx(kl, rel=1e-5)


def test_throughput_counts_prompts_and_responses() -> None:
    assert compute_throughput_metrics(batch(), step_s=2.0, num_devices=5) == {
        "perf/tokens/sum": 10.0,
        "perf/tokens_per_s": 5.0,
        "perf/tokens_per_s_per_device": 1.0,
        "perf/samples_per_s": 1.0,
    }
