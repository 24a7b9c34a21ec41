# SPDX-License-Identifier: Apache-2.0
"""What a weight sync cost, and the proof that it arrived: responses sampled after it have the trainer's log-probs.

A sync can succeed in transport and still fail in effect (a tied head that keeps its old weights, an adapter that is
never applied), and training then goes on with a policy that nobody samples from.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from verl.protocol import DataProto
from verl.utils.errors import UserError
from verl.weight_sync.base import SyncReport

logger = logging.getLogger(__name__)

FLOAT32_MAX_DIFFERENCE = 1e-4
HALF_MEAN_DIFFERENCE = 0.02


class WeightSyncError(RuntimeError):
    """The rollout engines do not compute what the trainer computes."""


def sync_metrics(reports: Sequence[SyncReport]) -> dict[str, float]:
    """Say what one sync cost.

    Args:
        reports: Of all policy ranks; those that sent nothing count no bytes.

    Returns:
        Metrics of the rank that sent the most: bytes, bytes per second, seconds to gather and write or pack, seconds
        of waiting for the servers, and in a verified sync seconds for the sender's digests.
    """
    sent = max(reports, key=lambda report: report.num_bytes)
    metrics = {
        "weight_sync/bytes/sum": float(sent.num_bytes),
        "weight_sync/bytes_per_s": sent.bytes_per_s,
        "weight_sync/gather_s": sent.gather_s,
        "weight_sync/load_s": sent.load_s,
    }
    if sent.digests_compared:
        logger.info("weight sync of %d tensors: digests of all tensors agree", sent.num_tensors)
        metrics["weight_sync/verify_s"] = sent.digest_s
    return metrics


@dataclass(frozen=True)
class SyncProof:
    """What the comparison gave.

    Args:
        num_tokens: Tokens compared.
        max_difference: Largest absolute difference of a log-prob, nats.
        mean_difference: Mean absolute difference, nats.
    """

    num_tokens: int
    max_difference: float
    mean_difference: float


def compare_log_probs(batch: DataProto) -> SyncProof:
    """Compare the engine's log-probs with the trainer's.

    Args:
        batch: [S] rows with `rollout_log_probs`, `old_log_probs` and `response_mask`.

    Returns:
        The differences.

    Raises:
        WeightSyncError: There is no token to compare.
        UserError: The trainer's log-probs are NaN, so that it is the policy that is broken and not the sync.
    """
    mask = batch.batch["response_mask"].bool()
    difference = (batch.batch["rollout_log_probs"] - batch.batch["old_log_probs"])[mask].abs()
    if not difference.numel():
        raise WeightSyncError("weight sync: the probe responses are empty, nothing can be compared")
    num_broken = int(batch.batch["old_log_probs"][mask].isnan().sum())
    if num_broken:
        raise UserError(
            f"policy: its own log-probs of {num_broken} of {difference.numel()} tokens are NaN, before any training "
            "step: weights are NaN, infinite or far too large. They come from the checkpoint that the run was to go on "
            "from, or else from actor_rollout_ref.model.path. Name an earlier checkpoint "
            "(trainer.resume_mode=resume_path and trainer.resume_from_path), or another model."
        )
    return SyncProof(difference.numel(), float(difference.max()), float(difference.mean()))


def check_proof(proof: SyncProof, is_float32: bool) -> None:
    """Refuse to go on when the engines compute something else.

    Args:
        proof: The differences.
        is_float32: Whether trainer and engine both compute in float32.

    Raises:
        WeightSyncError: The largest difference is above 1e-4 nats (float32), or the mean above 0.02 (half precision).
    """
    limit = FLOAT32_MAX_DIFFERENCE if is_float32 else HALF_MEAN_DIFFERENCE
    found = proof.max_difference if is_float32 else proof.mean_difference
    if not found <= limit:  # also refuses NaN
        what = "largest" if is_float32 else "mean"
        raise WeightSyncError(
            f"weight sync: after the sync the {what} difference between the log-probs of rollout engine and trainer "
            f"is {found:.3g} nats over {proof.num_tokens} tokens, allowed is {limit}. The engine does not run the "
            f"trainer's weights, or samples from another distribution (check rollout.dtype, temperature, engine_kwargs)"
        )
