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
from typing import Any, Protocol

import torch


@dataclass(frozen=True)
class PackedSequences:
    """N sequences one behind the other, T tokens in all, M of them to be predicted.

    Args:
        input_ids: [T] int64.
        position_ids: [T] int64, counted from 0 in each sequence.
        cu_seqlens: [N+1] int32, borders of the sequences in T.
        max_seqlen: Length of the longest sequence, tokens.
        logit_positions: [M] int64 into T, where the model's output is read.
        target_ids: [M] int64, the tokens to be predicted there; a classification head does not read them.
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
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True)
            for name, value in vars(self).items()
            if isinstance(value, torch.Tensor)
        }
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


class TokenSource(Protocol):
    """A padded batch of any kind whose rows can be packed."""

    def lengths(self) -> torch.Tensor:
        """Tokens of each packed sequence: [S] int64."""
        ...

    def pack(self, rows: Sequence[int]) -> PackedSequences:
        """Put some rows one behind the other, in this order."""
        ...


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
        columns = torch.arange(1, self.responses.shape[1] + 1, device=self.response_mask.device)
        return torch.cat([self.response_mask.bool() * columns, columns.new_zeros(len(self), 1)], dim=1).amax(dim=1)

    def lengths(self) -> torch.Tensor:
        """Tokens of each packed sequence, prompt and response: [S] int64."""
        return self.prompt_mask.bool().sum(dim=1) + self.response_lengths()

    def pack(self, rows: Sequence[int]) -> PackedSequences:
        """Put some rows one behind the other.

        The output at a token predicts the next one, so a response token at place i of its sequence is read at i - 1.

        Args:
            rows: Rows wanted, in this order.

        Returns:
            The packed rows, on the batch's device.

        Raises:
            ValueError: A row has an empty prompt: nothing could predict its first token.
        """
        row_index = torch.as_tensor(list(rows), dtype=torch.int64, device=self.responses.device)
        prompt_keep = self.prompt_mask[row_index].bool()
        columns = torch.arange(self.responses.shape[1], device=row_index.device)
        response_keep = columns[None, :] < self.response_lengths()[row_index][:, None]
        prompt_lengths = prompt_keep.sum(1)
        if bool((prompt_lengths == 0).any()):
            raise ValueError(f"row {int(row_index[prompt_lengths == 0][0])} has an empty prompt")
        keep = torch.cat([prompt_keep, response_keep], dim=1)
        sequences, target_columns = self.response_mask[row_index].bool().nonzero(as_tuple=True)
        cu_seqlens = _borders(keep.sum(1))
        return PackedSequences(
            input_ids=torch.cat([self.prompts[row_index], self.responses[row_index]], dim=1)[keep],
            position_ids=(keep.cumsum(1) - 1)[keep],
            cu_seqlens=cu_seqlens,
            max_seqlen=int(keep.sum(1).max()),
            logit_positions=cu_seqlens.long()[sequences] + prompt_lengths[sequences] + target_columns - 1,
            target_ids=self.responses[row_index[sequences], target_columns],
            rows=row_index,
            target_sequences=sequences,
            target_columns=target_columns,
            num_columns=self.responses.shape[1],
        )


@dataclass(frozen=True)
class LabelledSequences:
    """Whole texts with labels at some of their tokens, such as a process-reward model's step tokens.

    Args:
        input_ids: [S, L] int64, right padded.
        attention_mask: [S, L], 1 at real tokens.
        positions: [S, K] int64, columns of `input_ids` at which the model's output is read.
        labels: [S, K] float32, 0 to 1: the probability of class 1 there.
        label_mask: [S, K], 1 where `positions` and `labels` hold something.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    positions: torch.Tensor
    labels: torch.Tensor
    label_mask: torch.Tensor

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    def lengths(self) -> torch.Tensor:
        """Tokens of each sequence: [S] int64."""
        return self.attention_mask.bool().sum(dim=1)

    def pack(self, rows: Sequence[int]) -> PackedSequences:
        """Put some rows one behind the other; the output is read at the labelled tokens themselves.

        Args:
            rows: Rows wanted, in this order.

        Returns:
            The packed rows, on the batch's device; `target_columns` count the labels of a row.
        """
        row_index = torch.as_tensor(list(rows), dtype=torch.int64, device=self.input_ids.device)
        keep = self.attention_mask[row_index].bool()
        cu_seqlens = _borders(keep.sum(1))
        sequences, columns = self.label_mask[row_index].bool().nonzero(as_tuple=True)
        positions = self.positions[row_index[sequences], columns]
        return PackedSequences(
            input_ids=self.input_ids[row_index][keep],
            position_ids=(keep.cumsum(1) - 1)[keep],
            cu_seqlens=cu_seqlens,
            max_seqlen=int(keep.sum(1).max()),
            logit_positions=cu_seqlens.long()[sequences] + positions,
            target_ids=torch.zeros_like(positions),
            rows=row_index,
            target_sequences=sequences,
            target_columns=columns,
            num_columns=self.labels.shape[1],
        )


def _borders(lengths: torch.Tensor) -> torch.Tensor:
    borders = torch.zeros(len(lengths) + 1, dtype=torch.int32, device=lengths.device)
    borders[1:] = lengths.cumsum(0)
    return borders


def padded_to_longest(packed: PackedSequences) -> PackedSequences:
    """Return the same with every sequence as long as the longest, by tokens behind its end that no target can see."""
    n, longest = packed.num_sequences, packed.max_seqlen
    device = packed.input_ids.device
    sequence = torch.repeat_interleave(torch.arange(n, device=device), packed.cu_seqlens.diff().long())
    place = sequence * longest + packed.position_ids
    return replace(
        packed,
        input_ids=packed.input_ids.new_zeros(n * longest).index_copy(0, place, packed.input_ids),
        position_ids=torch.arange(longest, device=device).repeat(n),
        cu_seqlens=torch.arange(n + 1, dtype=torch.int32, device=device) * longest,
        logit_positions=place[packed.logit_positions],
    )


def padded_to_multiple(packed: PackedSequences, multiple: int) -> PackedSequences:
    """Return the same with a number of tokens that ranks can share equally, by one more sequence without targets.

    Args:
        packed: The sequences.
        multiple: Wanted divisor of the number of tokens.

    Returns:
        The same object if nothing is missing. `rows` keeps the real sequences only: nothing is gathered for the other.
    """
    missing = -packed.num_tokens % multiple
    if missing == 0:
        return packed
    filler = torch.arange(missing, device=packed.input_ids.device)
    return replace(
        packed,
        input_ids=torch.cat([packed.input_ids, torch.zeros_like(filler)]),
        position_ids=torch.cat([packed.position_ids, filler]),
        cu_seqlens=torch.cat([packed.cu_seqlens, packed.cu_seqlens[-1:] + missing]),
        max_seqlen=max(packed.max_seqlen, missing),
    )


def without_targets(packed: PackedSequences) -> PackedSequences:
    """Return the same sequences with nothing to predict: a filler that joins the collectives and adds no gradient."""
    empty = packed.target_ids[:0]
    return replace(packed, logit_positions=empty, target_ids=empty, target_sequences=empty, target_columns=empty)
