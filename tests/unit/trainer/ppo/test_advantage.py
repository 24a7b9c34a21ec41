# SPDX-License-Identifier: Apache-2.0
"""KL penalty and estimators between the columns of a batch and plain tensors, with numbers worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from verl.algorithms.kl import AdaptiveKLController, FixedKLController
from verl.batch_schema import SchemaError, check
from verl.config import AlgorithmConfig
from verl.config.algorithm import DeltaConfig, GDPOConfig, GroupFilterConfig, MinformConfig
from verl.config.names import ADV_ESTIMATORS
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
    assert sorted(columns.keys()) == ["advantages", "is_kept", "returns"]
    assert columns.batch["is_kept"].all()
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


def full_batch() -> DataProto:
    """Two groups of three with two steps each; in the first, row 0 is right with good steps and row 4 with bad ones."""
    scores = [[0.9, 0.9], [0.5, 0.3], [0.2, 0.4], [0.1, 0.3], [0.3, 0.1], [0.6, 0.8]]
    rules = torch.tensor([1.0, -1.0, -1.0, 1.0, 1.0, -1.0])
    return DataProto.from_dict(
        tensors={
            "token_level_rewards": torch.stack([torch.zeros(6), torch.zeros(6), rules], dim=1),
            "response_mask": torch.ones(6, 3, dtype=torch.int64),
            "rule_scores": rules,
            "overlong_penalty": torch.zeros(6),
            "is_correct": rules > 0,
            "reward_baselines": torch.full((6,), 0.5),
        },
        non_tensors={
            "uid": ["a", "b", "a", "b", "a", "b"],
            "step_scores": object_array([np.array(row, np.float32) for row in scores]),
            "step_ends": object_array([np.array([0, 1])] * 6),
            "prm_status": ["scored"] * 6,
        },
    )


@pytest.mark.parametrize("name", ADV_ESTIMATORS)
def test_every_estimator_runs_on_the_columns_of_a_batch(name: str) -> None:
    columns = compute_advantage(full_batch(), AlgorithmConfig(adv_estimator=name), beta=0.75)
    check(full_batch().union(columns))
    assert columns.batch["advantages"].isfinite().all() and columns.batch["advantages"].abs().max() > 0.1


def test_settings_reach_the_estimators() -> None:
    def first_row(**settings: object) -> torch.Tensor:
        return compute_advantage(full_batch(), AlgorithmConfig(**settings), beta=1.0).batch["advantages"]

    for name, settings in {
        "grpo_minform": {"grpo_minform": MinformConfig(temperature=5.0)},
        "grpo_delta": {"grpo_delta": DeltaConfig(clip=False)},
        "gdpo": {"gdpo": GDPOConfig(batch_norm=False)},
    }.items():
        assert not torch.equal(first_row(adv_estimator=name), first_row(adv_estimator=name, **settings))
    eta_above_all = first_row(adv_estimator="grpo_delta", grpo_delta=DeltaConfig(delta=False, eta=0.05))
    assert eta_above_all.abs().max() == 0
    no_delta = first_row(adv_estimator="grpo_delta", grpo_delta=DeltaConfig(delta=False))
    assert not torch.equal(no_delta, first_row(adv_estimator="grpo_delta"))


def test_remax_reads_the_greedy_response() -> None:
    columns = compute_advantage(full_batch(), AlgorithmConfig(adv_estimator="remax"), beta=0.75)
    assert columns.batch["advantages"][:, 0].tolist() == [0.5, -1.5, -1.5, 0.5, 0.5, -1.5]
    batch = full_batch()
    batch = batch.select([key for key in batch.keys() if key != "reward_baselines"])
    with pytest.raises(SchemaError, match="reward_baselines"):
        compute_advantage(batch, AlgorithmConfig(adv_estimator="remax"), beta=0.75)


def test_rows_that_the_filter_takes_out_are_reported_and_seen_by_nobody() -> None:
    # a: right 0.9 stays, right 0.2 goes, wrong 0.3 stays; b: the right one stays, wrong 0.7 goes, wrong 0.4 stays
    config = AlgorithmConfig(adv_estimator="grpo", group_filter=GroupFilterConfig(name="prof", keep=2))
    columns = compute_advantage(full_batch(), config, beta=0.0).batch
    assert columns["is_kept"].tolist() == [True, True, True, True, False, False]
    z = 1 / math.sqrt(2)
    assert columns["advantages"][:, 0].tolist() == pytest.approx([z, -z, -z, z, 0.0, 0.0], abs=1e-5)
    assert columns["returns"][:, 0].tolist() == [1, -1, -1, 1, 0, 0]
    loose = GroupFilterConfig(name="prof", keep=2, format_penalty=0.5, max_steps=2)
    again = compute_advantage(full_batch(), AlgorithmConfig(group_filter=loose), beta=0.0).batch
    assert again["is_kept"].tolist() == columns["is_kept"].tolist()


def test_dropped_groups_do_not_move_the_scale_of_the_batch() -> None:
    config = AlgorithmConfig(adv_estimator="reinforce_plus_plus")
    is_a = torch.tensor([True, False] * 3)
    batch = full_batch().union(DataProto.from_dict(tensors={"is_dropped": ~is_a}))
    columns = compute_advantage(batch, config, beta=0.75).batch
    alone = compute_advantage(full_batch()[np.flatnonzero(is_a.numpy())], config, beta=0.75).batch
    assert columns["is_kept"].tolist() == is_a.tolist()
    assert torch.equal(columns["advantages"][is_a], alone["advantages"])
    assert columns["advantages"][~is_a].abs().max() == 0
    none_left = full_batch().union(DataProto.from_dict(tensors={"is_dropped": torch.ones(6, dtype=torch.bool)}))
    assert compute_advantage(none_left, config, beta=0.75).batch["advantages"].abs().max() == 0


def test_response_mask_against_a_loop() -> None:
    lengths = [0, 3, 5, 1]
    mask = compute_response_mask(torch.zeros(4, 5, dtype=torch.int64), torch.tensor(lengths))
    assert mask.dtype == torch.int64
    assert mask.tolist() == [[int(place < length) for place in range(5)] for length in lengths]
