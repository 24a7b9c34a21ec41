# SPDX-License-Identifier: Apache-2.0
"""Old log-probs with and without the policy ranks, and the columns and metrics that come of them."""

from __future__ import annotations

import pytest
import torch

from verl.config.algorithm import RolloutCorrectionConfig
from verl.protocol import DataProto
from verl.trainer.ppo.rollout_correction import RolloutCorrection

MASK = torch.tensor([[1, 1, 1], [1, 0, 0]])
ROLLOUT = torch.tensor([[-1.0, -1.0, -1.0], [-2.0, 7.0, 7.0]])
OLD = ROLLOUT + torch.tensor([[0.0, 1.0, -2.0], [0.5, 50.0, float("nan")]])


class FakeActor:
    """Answers with `OLD` and counts how often it was asked."""

    def __init__(self) -> None:
        self.num_calls = 0

    def compute_log_prob(self, batch: DataProto) -> DataProto:
        self.num_calls += 1
        return DataProto.from_dict(tensors={"old_log_probs": OLD, "entropys": torch.ones(2, 3)})


def run(**settings: object) -> tuple[DataProto, dict[str, float], int]:
    batch = DataProto.from_dict(tensors={"rollout_log_probs": ROLLOUT, "response_mask": MASK})
    correction, actor = RolloutCorrection(RolloutCorrectionConfig(**settings)), FakeActor()
    batch = batch.union(correction.old_log_probs(batch, actor))
    return batch, correction.metrics(batch, {}), actor.num_calls


def test_without_a_correction_the_trainer_computes_and_only_the_mismatch_is_logged() -> None:
    batch, metrics, num_calls = run()
    assert num_calls == 1
    assert "rollout_is_weights" not in batch.batch.keys()
    assert metrics["rollout/log_prob_diff/max"] == pytest.approx(2.0)
    assert metrics["rollout/ratio/max"] == pytest.approx(2.71828, rel=1e-4)
    assert "rollout/is_weight/mean" not in metrics


def test_weights_are_a_column_and_their_shares_are_logged() -> None:
    batch, metrics, _ = run(rollout_is="token", mask_low=0.5)
    assert batch.batch["rollout_is_weights"].tolist() == [[1.0, 2.0, 0.0], [pytest.approx(1.6487, rel=1e-4), 0.0, 0.0]]
    assert metrics["rollout/truncated/share"] == pytest.approx(1 / 4)
    assert metrics["rollout/masked/share"] == pytest.approx(1 / 4)
    assert "entropys" in batch.batch.keys()


def test_a_bypass_asks_nobody_and_leaves_weights_to_the_loss() -> None:
    batch, metrics, num_calls = run(bypass_old_log_probs=True, rollout_is="token")
    assert num_calls == 0
    assert batch.batch["old_log_probs"].equal(ROLLOUT)
    assert "rollout_is_weights" not in batch.batch.keys()
    assert metrics == {}


def test_where_the_update_has_them_nobody_is_asked_and_its_numbers_are_logged() -> None:
    batch = DataProto.from_dict(tensors={"rollout_log_probs": ROLLOUT, "response_mask": MASK})
    correction, actor = RolloutCorrection(RolloutCorrectionConfig(), needs_old_log_probs=False), FakeActor()
    batch = batch.union(correction.old_log_probs(batch, actor))
    assert actor.num_calls == 0 and "old_log_probs" not in batch.batch.keys()
    update = {"actor/policy_entropy": 1.5, "actor/rollout_log_prob_diff_max": 0.25, "actor/loss": 3.0}
    assert correction.metrics(batch, update) == {"policy/entropy/mean": 1.5, "rollout/log_prob_diff/max": 0.25}
