# SPDX-License-Identifier: Apache-2.0
"""The proof that a weight sync arrived: responses sampled after it must have the trainer's own log-probs.

A sync can succeed in transport and still fail in effect (a tied head that keeps its old weights, an adapter that is
never applied), and training then goes on with a policy that nobody samples from.
"""

from __future__ import annotations

from dataclasses import dataclass

from verl.protocol import DataProto

FLOAT32_MAX_DIFFERENCE = 1e-4
HALF_MEAN_DIFFERENCE = 0.02


class WeightSyncError(RuntimeError):
    """The rollout engines do not compute what the trainer computes."""


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
    """
    mask = batch.batch["response_mask"].bool()
    difference = (batch.batch["rollout_log_probs"] - batch.batch["old_log_probs"])[mask].abs()
    if not difference.numel():
        raise WeightSyncError("weight sync: the probe responses are empty, nothing can be compared")
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
