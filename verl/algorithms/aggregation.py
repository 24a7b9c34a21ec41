# SPDX-License-Identifier: Apache-2.0
"""From a loss per token to one number, over a denominator of the WHOLE mini-batch. Knows no rank and no micro-batch.

A mini-batch is cut into micro-batches and spread over ranks. Each cut is divided by the same global counts, so the sum
over all cuts is the loss of the uncut mini-batch, whatever the cut. An engine whose gradient reduction averages over N
data-parallel ranks multiplies the loss by N.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from verl.algorithms.masked import masked_mean, masked_sum
from verl.utils.errors import UserError

LOSS_AGG_MODES = ("token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm")


@dataclass(frozen=True)
class LossDenominator:
    """The counts a loss is divided by, over all micro-batches and all ranks of one optimizer step.

    Attributes:
        num_tokens: Tokens of the loss mask.
        num_sequences: Sequences with at least one token in the loss mask (padding rows and dropped groups have none).
        max_response_len: Fixed length by which `seq-mean-token-sum-norm` divides: the configured
            `data.max_response_length`, NOT the width of a batch, which changes from batch to batch.

    Example:
        >>> counts = LossDenominator(num_tokens=6, num_sequences=2, max_response_len=4)
    """

    num_tokens: float
    num_sequences: float
    max_response_len: float


def count_loss_terms(loss_mask: torch.Tensor, max_response_len: int | None = None) -> LossDenominator:
    """Count one matrix. Counts of several matrices are added (all-reduced) by the caller; the length is not.

    Args:
        loss_mask: [S, R] int or bool.
        max_response_len: The fixed length; None takes R.

    Returns:
        The counts.
    """
    mask = loss_mask.bool()
    length = mask.shape[-1] if max_response_len is None else max_response_len
    return LossDenominator(int(mask.sum()), int(mask.any(-1).sum()), length)


def agg_loss(
    loss_mat: torch.Tensor,
    loss_mask: torch.Tensor,
    loss_agg_mode: str = "token-mean",
    denominator: LossDenominator | None = None,
) -> torch.Tensor:
    """Average a loss per token.

        token-mean               sum_{n,t} l / num_tokens                              DAPO
        seq-mean-token-sum       sum_n sum_t l / num_sequences
        seq-mean-token-mean      sum_n ( sum_t l / |mask_n| ) / num_sequences          GRPO
        seq-mean-token-sum-norm  sum_n sum_t l / max_response_len / num_sequences      Dr.GRPO

    Args:
        loss_mat: [S, R] float; values outside the mask do not matter, NaN included.
        loss_mask: [S, R] int or bool.
        loss_agg_mode: One of `LOSS_AGG_MODES`.
        denominator: Counts of the whole mini-batch; None takes this matrix for the whole.

    Returns:
        Scalar, this matrix's share of the whole loss; 0 when the mask is empty.

    Raises:
        UserError: Unknown mode.

    Source:
        GRPO: arXiv 2402.03300, Eq. 3; DAPO: arXiv 2503.14476, Eq. 8; Dr.GRPO: arXiv 2503.20783.
        Departure from verl: a count over everything instead of the micro-batch's own (which makes the loss depend on
        the cut), and `seq-mean-token-sum-norm` is a mean over sequences too, as its name says.
    """
    if loss_agg_mode not in LOSS_AGG_MODES:
        key = "actor_rollout_ref.actor.loss_agg_mode"
        raise UserError.for_key(key, loss_agg_mode, f"one of {', '.join(LOSS_AGG_MODES)}", "Use one of them")
    counts = count_loss_terms(loss_mask) if denominator is None else denominator
    if loss_agg_mode == "token-mean":
        return masked_sum(loss_mat, loss_mask) / max(counts.num_tokens, 1)
    if loss_agg_mode == "seq-mean-token-mean":
        return masked_mean(loss_mat, loss_mask, dim=-1).sum() / max(counts.num_sequences, 1)
    total = masked_sum(loss_mat, loss_mask) / max(counts.num_sequences, 1)
    return total / max(counts.max_response_len, 1) if loss_agg_mode.endswith("-norm") else total
