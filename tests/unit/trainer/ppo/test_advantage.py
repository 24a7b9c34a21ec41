# SPDX-License-Identifier: Apache-2.0
"""KL penalty and estimators between the columns of a batch and plain tensors, with numbers worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from verl.algorithms.kl import AdaptiveKLController, FixedKLController
from verl.batch_schema import SchemaError
from verl.config import AlgorithmConfig
from verl.protocol import DataProto, object_array
from verl.trainer.ppo.advantage import apply_kl_penalty, compute_advantage, compute_response_mask


def kl_batch() -> DataProto:
    """Two rows; the last column of the second is padding and holds numbers that must not be read."""
    return DataProto.from_dict(
        tensors={
            "token_level_scores": torch.tensor([[0.0, 0.0, 1.0], [0.0, -1.0, 9.0]]),
            "old_log_probs": torch.tensor([[-1.0, -2.0, -0.5], [-3.0, -1.0, 7.0]]),
            "ref_log_prob": torch.tensor([[-1.5, -1.0, -0.5], [-3.0, -2.0, -7.0]]),
            "response_mask": torch.tensor([[1, 1, 1], [1, 1, 0]]),
            "rule_scores": torch.tensor([1.0, -1.0]),
        }
    )


def test_kl_is_subtracted_token_by_token_and_padding_stays_zero() -> None:
    # k1 = old - ref: 0.5, -1, 0 | 0, 1; the mean over the five tokens is 0.1
    columns, metrics = apply_kl_penalty(kl_batch(), FixedKLController(0.5), "kl")
    assert columns.keys() == ["token_level_rewards"]
    assert columns.batch["token_level_rewards"].tolist() == [[-0.25, 0.5, 1.0], [0.0, -1.5, 0.0]]
    assert metrics == {"reward/kl_penalty/mean": pytest.approx(0.1), "reward/kl_coef": 0.5}


def test_other_kl_forms_are_passed_on() -> None:
    columns, metrics = apply_kl_penalty(kl_batch(), FixedKLController(1.0), "mse")
    assert columns.batch["token_level_rewards"].tolist() == [[-0.125, -0.5, 1.0], [0.0, -1.5, 0.0]]
    assert metrics["reward/kl_penalty/mean"] == pytest.approx((0.125 + 0.5 + 0.5) / 5)


def test_controller_is_adapted_after_use_with_the_number_of_sequences() -> None:
    # the KL of 0.1 is twice the target, so the error is cut to 0.2: 0.5 * (1 + 0.2 * 2 / 10)
    controller = AdaptiveKLController(0.5, target_kl=0.05, horizon=10)
    _, metrics = apply_kl_penalty(kl_batch(), controller, "kl")
    assert metrics["reward/kl_coef"] == 0.5
    assert controller.value == pytest.approx(0.52)


def test_kl_without_reference_says_which_column_is_missing() -> None:
    batch = kl_batch()
    batch = batch.select([key for key in batch.keys() if key != "ref_log_prob"])
    with pytest.raises(SchemaError, match="ref_log_prob"):
        apply_kl_penalty(batch, FixedKLController(0.5), "kl")


def reward_batch(**others: object) -> DataProto:
    """Two groups of two, rows of different groups in turn; the summed rewards are 1, 4, 3, 0."""
    return DataProto.from_dict(
        tensors={
            "token_level_rewards": torch.tensor([[0.0, 1.0, 0.0], [1.0, 3.0, 0.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]),
            "response_mask": torch.tensor([[1, 1, 0], [1, 1, 1], [1, 1, 1], [1, 0, 0]]),
        },
        non_tensors={"uid": ["a", "b", "a", "b"], **others},
    )


def test_grpo_groups_rows_by_uid_wherever_they_stand() -> None:
    # a: 1 and 3, mean 2, deviation sqrt 2; b: 4 and 0, mean 2, deviation 2 sqrt 2
    columns = compute_advantage(reward_batch(), AlgorithmConfig(adv_estimator="grpo"), beta=0.75)
    assert sorted(columns.keys()) == ["advantages", "returns"]
    z = 1 / math.sqrt(2)
    expected = torch.tensor([[-z, -z, 0], [z, z, z], [z, z, z], [-z, 0, 0]])
    torch.testing.assert_close(columns.batch["advantages"], expected, atol=2e-6, rtol=0)
    assert columns.batch["returns"].tolist() == [[1, 1, 0], [4, 4, 4], [3, 3, 3], [0, 0, 0]]


def test_division_by_the_deviation_follows_the_configuration() -> None:
    config = AlgorithmConfig(adv_estimator="grpo", norm_adv_by_std_in_grpo=False)
    columns = compute_advantage(reward_batch(), config, beta=0.75)
    assert columns.batch["advantages"].tolist() == [[-1, -1, 0], [2, 2, 2], [1, 1, 1], [-2, 0, 0]]


def test_uid_is_required() -> None:
    batch = reward_batch()
    del batch.non_tensor_batch["uid"]
    with pytest.raises(SchemaError, match="uid"):
        compute_advantage(batch, AlgorithmConfig(adv_estimator="grpo"), beta=0.75)


def step_batch(statuses: list[str]) -> DataProto:
    """One group of two: steps 1 and 3 against one step of 2; outcomes +1 and -0.5 with a length penalty of 0.5."""
    return DataProto.from_dict(
        tensors={
            "token_level_rewards": torch.full((2, 4), 99.0),
            "response_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]),
            "rule_scores": torch.tensor([1.0, -0.5]),
            "overlong_penalty": torch.tensor([0.0, -0.5]),
        },
        non_tensors={
            "uid": ["a", "a"],
            "step_scores": object_array([np.array([1.0, 3.0], np.float32), np.array([2.0], np.float32)]),
            "step_ends": object_array([np.array([0, 2]), np.array([1])]),
            "prm_status": statuses,
        },
    )


def test_grpo_ps_reads_steps_outcome_and_length_penalty() -> None:
    # all step scores 1, 3, 2: z = -1, 1 | 0. Outcome +1 and -0.5 - 0.5 = -1: +-1/sqrt 2
    columns = compute_advantage(step_batch(["scored", "retried"]), AlgorithmConfig(adv_estimator="grpo_ps"), beta=0.5)
    out = 0.5 / math.sqrt(2)
    expected = torch.tensor([[out, out + 0.5, out + 0.5, out], [-out, -out, 0, 0]])
    torch.testing.assert_close(columns.batch["advantages"], expected, atol=2e-6, rtol=0)


def test_grpo_ps_takes_a_group_with_a_failed_score_by_rule_only() -> None:
    columns = compute_advantage(step_batch(["scored", "failed"]), AlgorithmConfig(adv_estimator="grpo_ps"), beta=0.5)
    out = 1 / math.sqrt(2)
    expected = torch.tensor([[out, out, out, out], [-out, -out, 0, 0]])
    torch.testing.assert_close(columns.batch["advantages"], expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("name", ["step_scores", "step_ends", "prm_status", "rule_scores", "overlong_penalty"])
def test_grpo_ps_names_the_column_it_lacks(name: str) -> None:
    batch = step_batch(["scored", "scored"])
    batch = batch.select([key for key in batch.keys() if key != name])
    with pytest.raises(SchemaError, match=name):
        compute_advantage(batch, AlgorithmConfig(adv_estimator="grpo_ps"), beta=0.5)


def test_response_mask_against_a_loop() -> None:
    lengths = [0, 3, 5, 1]
    mask = compute_response_mask(torch.zeros(4, 5, dtype=torch.int64), torch.tensor(lengths))
    assert mask.dtype == torch.int64
    assert mask.tolist() == [[int(place < length) for place in range(5)] for length in lengths]
