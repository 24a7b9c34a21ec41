# SPDX-License-Identifier: Apache-2.0
"""Which sequences share a forward pass: under a token budget, balanced, and in equal number on every rank.

This file knows nothing of models or losses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from verl.engines.base import TrainEngine
from verl.engines.packing import PackedSequences, TokenSource, padded_to_longest, without_targets
from verl.utils.errors import UserError
from verl.utils.seqlen_balancing import balanced_partition, partition_under_budget, split_further


@dataclass(frozen=True)
class MicroBatchSpec:
    """How a rank's sequences become micro-batches; limits that are set hold together.

    Args:
        max_tokens: Most tokens in one forward pass; None for no such limit.
        max_sequences: Most sequences in one forward pass; None for no such limit.
        padded: Pad every sequence to the micro-batch's longest. Only for comparison: it costs time and changes nothing.
        key: The configuration key of `max_tokens`, for messages.
    """

    max_tokens: int | None = None
    max_sequences: int | None = None
    padded: bool = False
    key: str = "actor_rollout_ref.actor.ppo_max_token_len_per_gpu"


def make_micro_batches(
    engine: TrainEngine, source: TokenSource, rows: Sequence[int], spec: MicroBatchSpec
) -> list[PackedSequences]:
    """Pack this rank's rows; collective, every rank gets equally many micro-batches.

    Args:
        engine: Whose ranks have to agree.
        source: This rank's padded batch, on the CPU.
        rows: Rows of it wanted, at least one.
        spec: The limits.

    Returns:
        Micro-batches on the CPU. A rank with too few sequences gets fillers without targets.

    Raises:
        UserError: The longest sequence of any rank is above the token budget; raised on every rank.
    """
    all_lengths = source.lengths()
    lengths = [int(all_lengths[row]) for row in rows]
    check_budget(int(engine.all_reduce(torch.tensor(max(lengths)), "max")), spec)
    parts = plan_micro_batches(lengths, spec)
    count = int(engine.all_reduce(torch.tensor(len(parts)), "max"))
    packed = [source.pack([rows[i] for i in part]) for part in split_further(parts, lengths, count)]
    packed += [without_targets(source.pack([rows[0]]))] * (count - len(packed))
    return [padded_to_longest(micro_batch) for micro_batch in packed] if spec.padded else packed


def check_budget(longest: int, spec: MicroBatchSpec) -> None:
    """Refuse a token budget that cannot hold the longest sequence.

    Args:
        longest: Its tokens.
        spec: The limits.

    Raises:
        UserError: It cannot.
    """
    if spec.max_tokens is not None and longest > spec.max_tokens:
        raise UserError.for_key(
            spec.key,
            spec.max_tokens,
            f"must hold the longest sequence, which has {longest} tokens",
            f"Set it to at least {longest}, or shorten prompts or responses",
        )


def plan_micro_batches(lengths: Sequence[int], spec: MicroBatchSpec) -> list[list[int]]:
    """Choose the fewest micro-batches that this rank alone would need.

    Args:
        lengths: Tokens of each of the rank's sequences, none above the budget.
        spec: The limits.

    Returns:
        Lists of indices into `lengths`, balanced by tokens.
    """
    if spec.max_sequences is None:
        return partition_under_budget(lengths, spec.max_tokens or sum(lengths))
    for count in range(-(-len(lengths) // spec.max_sequences), len(lengths) + 1):
        parts = _partition_by_size(lengths, count)
        if spec.max_tokens is None or all(sum(lengths[i] for i in part) <= spec.max_tokens for part in parts):
            return parts
    return []


def _partition_by_size(lengths: Sequence[int], count: int) -> list[list[int]]:
    """Balance by tokens into parts of at most ceil(n / count) sequences: fillers make up the difference."""
    size = -(-len(lengths) // count)
    fillers = [0] * (count * size - len(lengths))
    parts = balanced_partition([*lengths, *fillers], count, equal_size=True)
    kept = [[i for i in part if i < len(lengths)] for part in parts]
    return [part for part in kept if part]
