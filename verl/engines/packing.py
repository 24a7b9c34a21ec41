# SPDX-License-Identifier: Apache-2.0
"""Padded columns in, packed sequences out, and back: no padding token ever enters a forward pass.

    prompts [S,P] left padded  +  responses [S,R] right padded
        -> rows of one micro-batch, one behind the other: input_ids [T], borders in cu_seqlens [N+1]
        -> the model -> one number per predicted token [M] -> scattered back to [N,R] or [S,R]

This file knows nothing of models, losses or ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from verl.utils.errors import UserError
from verl.utils.seqlen_balancing import balanced_partition, partition_under_budget, split_further


@dataclass(frozen=True)
class PaddedSequences:
    """Prompts and responses as they travel between workers.

    Args:
        prompts: [S, P] int64, left padded.
        prompt_mask: [S, P], 1 at real tokens.
        responses: [S, R] int64, right padded.
        response_mask: [S, R], 1 at the tokens whose log-probabilities are wanted. A token before the last such token is
            context even where the mask is 0; everything after it is dropped.
    """

    prompts: torch.Tensor
    prompt_mask: torch.Tensor
    responses: torch.Tensor
    response_mask: torch.Tensor

    def __len__(self) -> int:
        return self.responses.shape[0]

    def response_lengths(self) -> torch.Tensor:
        """Tokens of each response up to its last masked one: [S] int64."""
        positions = torch.arange(1, self.responses.shape[1] + 1, device=self.response_mask.device)
        return (self.response_mask.bool() * positions).amax(dim=1) if len(positions) else positions.new_zeros(len(self))

    def lengths(self) -> torch.Tensor:
        """Tokens of each packed sequence, prompt and response: [S] int64."""
        return self.prompt_mask.bool().sum(dim=1) + self.response_lengths()


@dataclass(frozen=True)
class PackedSequences:
    """N sequences one behind the other, T tokens in all, M of them to be predicted.

    Args:
        input_ids: [T] int64.
        position_ids: [T] int64, counted from 0 in each sequence.
        cu_seqlens: [N+1] int32, borders of the sequences in T.
        max_seqlen: Length of the longest sequence, tokens.
        logit_positions: [M] int64 into T, where the model's output is read.
        target_ids: [M] int64: the token to be predicted there, or the label of a classification head.
        rows: [N] int64, each sequence's row in the padded batch.
        target_sequences: [M] int64, each target's sequence, 0 <= n < N.
        target_columns: [M] int64, each target's column in the padded responses.
        num_columns: R, columns of the padded responses.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    cu_seqlens: torch.Tensor
    max_seqlen: int
    logit_positions: torch.Tensor
    target_ids: torch.Tensor
    rows: torch.Tensor
    target_sequences: torch.Tensor
    target_columns: torch.Tensor
    num_columns: int

    @property
    def num_tokens(self) -> int:
        """T, tokens in the forward pass."""
        return self.input_ids.shape[0]

    @property
    def num_sequences(self) -> int:
        """N, sequences in the forward pass."""
        return self.cu_seqlens.shape[0] - 1

    def to(self, device: torch.device) -> PackedSequences:
        """Return the same on a device."""
        moved = {k: v.to(device, non_blocking=True) for k, v in vars(self).items() if isinstance(v, torch.Tensor)}
        return replace(self, **moved)

    def gather(self, padded: torch.Tensor) -> torch.Tensor:
        """Read a padded column at the targets.

        Args:
            padded: [S, R], any dtype.

        Returns:
            [M], in the order of `logit_positions`.
        """
        return padded[self.rows[self.target_sequences], self.target_columns]

    def scatter(self, values: torch.Tensor) -> torch.Tensor:
        """Lay values at the targets out as padded rows; gradients flow through.

        Args:
            values: [M] float.

        Returns:
            [N, R], 0 where there is no target.
        """
        padded = values.new_zeros(self.num_sequences, self.num_columns)
        return padded.index_put((self.target_sequences, self.target_columns), values)


def pack(padded: PaddedSequences, rows: Sequence[int]) -> PackedSequences:
    """Put some rows of a padded batch one behind the other.

    The output at a token predicts the next one, so a response token at place i of its sequence is read at i - 1.

    Args:
        padded: The batch.
        rows: Rows wanted, in this order.

    Returns:
        The packed rows, on the batch's device.

    Raises:
        ValueError: A row has a response but no prompt token before it: nothing could predict its first token.
    """
    device = padded.responses.device
    row_index = torch.as_tensor(list(rows), dtype=torch.int64, device=device)
    prompt_keep = padded.prompt_mask[row_index].bool()
    columns = torch.arange(padded.responses.shape[1], device=device)
    response_keep = columns[None, :] < padded.response_lengths()[row_index][:, None]
    prompt_lengths, lengths = prompt_keep.sum(1), prompt_keep.sum(1) + response_keep.sum(1)
    if bool((prompt_lengths == 0).any()):
        raise ValueError(f"row {int(row_index[prompt_lengths == 0][0])} has an empty prompt")

    keep = torch.cat([prompt_keep, response_keep], dim=1)
    input_ids = torch.cat([padded.prompts[row_index], padded.responses[row_index]], dim=1)[keep]
    position_ids = (keep.cumsum(1) - 1)[keep]
    cu_seqlens = torch.zeros(len(row_index) + 1, dtype=torch.int32, device=device)
    cu_seqlens[1:] = lengths.cumsum(0)

    sequences, target_columns = padded.response_mask[row_index].bool().nonzero(as_tuple=True)
    logit_positions = cu_seqlens[:-1].long()[sequences] + prompt_lengths[sequences] + target_columns - 1
    return PackedSequences(
        input_ids=input_ids,
        position_ids=position_ids,
        cu_seqlens=cu_seqlens,
        max_seqlen=int(lengths.max()),
        logit_positions=logit_positions,
        target_ids=padded.responses[row_index[sequences], target_columns],
        rows=row_index,
        target_sequences=sequences,
        target_columns=target_columns,
        num_columns=padded.responses.shape[1],
    )


def pack_labelled(
    input_ids: Sequence[torch.Tensor], positions: Sequence[torch.Tensor], labels: Sequence[torch.Tensor]
) -> PackedSequences:
    """Pack whole sequences whose output is classified at given positions (a process-reward model's step tokens).

    Args:
        input_ids: N sequences, [T_n] int64 each, none empty.
        positions: N index vectors, [K_n] int64 into the sequence.
        labels: N label vectors, [K_n] int64.

    Returns:
        The packed sequences; `target_columns` count the positions, so `scatter` gives [N, max K_n].
    """
    device = input_ids[0].device
    lengths = torch.tensor([len(ids) for ids in input_ids], device=device)
    counts = torch.tensor([len(p) for p in positions], device=device)
    cu_seqlens = torch.zeros(len(lengths) + 1, dtype=torch.int32, device=device)
    cu_seqlens[1:] = lengths.cumsum(0)
    sequences = torch.repeat_interleave(torch.arange(len(lengths), device=device), counts)
    return PackedSequences(
        input_ids=torch.cat(list(input_ids)).long(),
        position_ids=torch.cat([torch.arange(len(ids), device=device) for ids in input_ids]),
        cu_seqlens=cu_seqlens,
        max_seqlen=int(lengths.max()),
        logit_positions=torch.cat(list(positions)).long() + cu_seqlens[:-1].long()[sequences],
        target_ids=torch.cat(list(labels)).long(),
        rows=torch.arange(len(lengths), device=device),
        target_sequences=sequences,
        target_columns=torch.cat([torch.arange(len(p), device=device) for p in positions]),
        num_columns=int(counts.max()),
    )


def without_targets(packed: PackedSequences) -> PackedSequences:
    """Return the same sequences with nothing to predict: a filler that joins the collectives and adds no gradient."""
    empty = packed.target_ids[:0]
    return replace(packed, logit_positions=empty, target_ids=empty, target_sequences=empty, target_columns=empty)


@dataclass(frozen=True)
class MicroBatchSpec:
    """How a rank's sequences become micro-batches: exactly one of the two limits is set.

    Args:
        max_tokens: Most tokens in one forward pass (dynamic size).
        max_sequences: Sequences in one forward pass (fixed size).
        key: The configuration key that a message should name.
    """

    max_tokens: int | None = None
    max_sequences: int | None = None
    key: str = "actor_rollout_ref.actor.ppo_max_token_len_per_gpu"

    def __post_init__(self) -> None:
        if (self.max_tokens is None) == (self.max_sequences is None):
            raise ValueError("set exactly one of max_tokens and max_sequences")


def plan_micro_batches(lengths: Sequence[int], spec: MicroBatchSpec) -> list[list[int]]:
    """Choose the fewest micro-batches that this rank alone would need.

    Args:
        lengths: Tokens of each of the rank's sequences.
        spec: The limit.

    Returns:
        Lists of indices into `lengths`, balanced by tokens.

    Raises:
        UserError: A sequence is longer than the token budget.
    """
    if not lengths:
        return []
    if spec.max_sequences is not None:
        count = -(-len(lengths) // spec.max_sequences)
        fillers = [0] * (count * spec.max_sequences - len(lengths))
        parts = balanced_partition([*lengths, *fillers], count, equal_size=True)
        return [[i for i in part if i < len(lengths)] for part in parts]
    budget = spec.max_tokens or 0
    if max(lengths) > budget:
        raise UserError.for_key(
            spec.key,
            budget,
            f"must hold the longest sequence, which has {max(lengths)} tokens",
            f"Set it to at least {max(lengths)}, or shorten data.max_prompt_length and data.max_response_length",
        )
    return partition_under_budget(lengths, budget)


def equalise_micro_batches(parts: Sequence[Sequence[int]], lengths: Sequence[int], count: int) -> list[list[int]]:
    """Reach the number of micro-batches that all ranks agreed on, for equally many collectives.

    Args:
        parts: This rank's micro-batches.
        lengths: Tokens of each of the rank's sequences.
        count: The agreed number, at least `len(parts)`.

    Returns:
        `count` lists of indices; where there are fewer sequences than that, the last ones are empty (see
        `without_targets`).
    """
    result = split_further(parts, lengths, count)
    return result + [[] for _ in range(count - len(result))]
