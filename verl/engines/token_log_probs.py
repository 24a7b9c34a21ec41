# SPDX-License-Identifier: Apache-2.0
"""Log-probs of the responses of a padded batch under an engine's present weights, without gradient.

Serves the old policy and the reference alike. It knows no loss.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from verl.engines.base import HeadRequest, TrainEngine
from verl.engines.micro_batches import MicroBatchSpec, make_micro_batches
from verl.engines.packing import PaddedSequences


@dataclass(frozen=True)
class TokenLogProbs:
    """Answers for a padded batch, on the CPU.

    Args:
        log_probs: [S, R] float32, 0 outside `response_mask`.
        entropy: [S, R] float32 in nats, 0 outside `response_mask`; None if it was not asked for.
    """

    log_probs: torch.Tensor
    entropy: torch.Tensor | None


def compute_log_probs(
    engine: TrainEngine, sequences: PaddedSequences, micro: MicroBatchSpec, head: HeadRequest
) -> TokenLogProbs:
    """Compute the log-probs of every masked response token; collective.

    Args:
        engine: Any engine with a `log_probs` head.
        sequences: This rank's sequences, on the CPU.
        micro: Limits of a forward pass.
        head: Temperature, and whether the entropy is wanted.

    Returns:
        The log-probs, in the order of the rows.
    """
    micro_batches = make_micro_batches(engine, sequences, range(len(sequences)), micro)
    log_probs = torch.zeros(sequences.responses.shape, dtype=torch.float32)
    entropy = torch.zeros_like(log_probs) if head.with_entropy else None
    for micro_batch, outputs in zip(micro_batches, engine.forward(micro_batches, head), strict=True):
        place = (micro_batch.rows[micro_batch.target_sequences], micro_batch.target_columns)
        if outputs.log_probs is not None:
            log_probs[place] = outputs.log_probs.cpu()
        if entropy is not None and outputs.entropy is not None:
            entropy[place] = outputs.entropy.cpu()
    return TokenLogProbs(log_probs, entropy)
