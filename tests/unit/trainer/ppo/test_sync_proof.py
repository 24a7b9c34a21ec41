# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from verl.protocol import DataProto
from verl.trainer.ppo.sync_proof import SyncProof, WeightSyncError, check_proof, compare_log_probs, sync_metrics
from verl.utils.errors import UserError
from verl.weight_sync.base import SyncReport


def batch(rollout: list[list[float]], trainer: list[list[float]], mask: list[list[int]]) -> DataProto:
    return DataProto.from_dict(
        tensors={
            "rollout_log_probs": torch.tensor(rollout),
            "old_log_probs": torch.tensor(trainer),
            "response_mask": torch.tensor(mask),
        }
    )


def test_only_tokens_of_the_responses_are_compared() -> None:
    proof = compare_log_probs(batch([[-1.0, -2.0, 50.0]], [[-1.5, -1.75, 0.0]], [[1, 1, 0]]))
    assert proof == SyncProof(num_tokens=2, max_difference=0.5, mean_difference=0.375)


def test_nothing_to_compare_is_no_proof() -> None:
    with pytest.raises(WeightSyncError, match="empty"):
        compare_log_probs(batch([[0.0]], [[0.0]], [[0]]))


@pytest.mark.parametrize(
    ("largest", "mean", "is_float32", "passes"),
    [
        (9e-5, 1e-5, True, True),
        (2e-4, 1e-6, True, False),  # float32: one wrong token is enough
        (0.3, 0.019, False, True),  # half precision: single tokens may differ, the mean must not
        (0.3, 0.021, False, False),
        (float("nan"), float("nan"), True, False),
        (float("nan"), float("nan"), False, False),
    ],
)
def test_limits(largest: float, mean: float, is_float32: bool, passes: bool) -> None:
    proof = SyncProof(10, largest, mean)
    if passes:
        check_proof(proof, is_float32)
        return
    with pytest.raises(WeightSyncError, match="over 10 tokens"):
        check_proof(proof, is_float32)


def test_a_single_nan_is_found() -> None:
    proof = compare_log_probs(batch([[-1.0, float("nan")]], [[-1.0, -1.0]], [[1, 1]]))
    with pytest.raises(WeightSyncError, match="nan"):
        check_proof(proof, is_float32=True)


def test_a_policy_that_is_broken_itself_is_not_laid_to_the_sync() -> None:
    nan = float("nan")
    with pytest.raises(UserError, match="1 of 2 tokens are NaN.*trainer.resume_from_path"):
        compare_log_probs(batch([[nan, -1.0, -1.0]], [[nan, -1.0, nan]], [[1, 1, 0]]))


def test_metrics_are_those_of_the_rank_that_sent() -> None:
    idle = SyncReport(2, 0, 0, gather_s=9.0, load_s=9.0)
    sent = SyncReport(2, 5, 600, gather_s=1.0, load_s=2.0)
    assert sync_metrics([idle, sent]) == {
        "weight_sync/bytes/sum": 600.0,
        "weight_sync/bytes_per_s": 200.0,
        "weight_sync/gather_s": 1.0,
        "weight_sync/load_s": 2.0,
    }
    verified = SyncReport(2, 5, 600, gather_s=1.0, load_s=2.0, digests_compared=True, digest_s=3.0)
    metrics = sync_metrics([verified, idle])
    assert (metrics["weight_sync/verify_s"], metrics["weight_sync/bytes_per_s"]) == (3.0, 100.0)
