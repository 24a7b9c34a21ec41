# SPDX-License-Identifier: Apache-2.0
"""Sequence parallelism after DeepSpeed-Ulysses: ranks share the tokens everywhere but in attention, where they share
the heads.

    embedding, norms, MLP, head     T/s tokens, all heads      (each rank its slice of the packed tokens)
    attention                       T tokens, H/s heads        (one all-to-all before, one after)

Loss functions see the values of all targets on every rank; backward, each rank goes on with those it computed. The sum
of the ranks' gradients is then the gradient of the loss, counted once. This file knows no model and no loss.

Source: Jacobs et al. 2023, arXiv 2309.14509.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class SequenceParallel:
    """The ranks that share one sequence.

    Args:
        group: Their process group.
        rank: This one's place in it.
        size: How many they are.
    """

    group: dist.ProcessGroup
    rank: int
    size: int

    def slice_of(self, num_tokens: int) -> slice:
        """Tokens of this rank.

        Args:
            num_tokens: T, a multiple of the group's size.
        """
        each = num_tokens // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def tokens_to_heads(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Give away heads for tokens, in one all-to-all.

        Key and value heads are repeated first as far as needed for each rank to get the ones its query heads read.

        Args:
            query: [1, H, T/s, D]; s divides H.
            key: [1, H_kv, T/s, D].
            value: [1, H_kv, T/s, D].

        Returns:
            [1, H/s, T, D] and twice [1, H', T, D], where H' divides H/s.
        """
        repeats = math.lcm(key.shape[1], self.size) // key.shape[1]
        if repeats > 1:
            key, value = (x.repeat_interleave(repeats, dim=1) for x in (key, value))
        # [s, T/s, heads of one destination, D]: what goes to a rank lies together
        sent = [x[0].transpose(0, 1).unflatten(1, (self.size, -1)).transpose(0, 1) for x in (query, key, value)]
        received = _AllToAll.apply(torch.cat(sent, dim=2), self.group)
        parts = received.flatten(0, 1).transpose(0, 1)[None].split([x.shape[2] for x in sent], dim=1)
        return parts[0], parts[1], parts[2]

    def heads_to_tokens(self, attended: torch.Tensor) -> torch.Tensor:
        """Take the heads back for the tokens.

        Args:
            attended: [1, T, H/s, D].

        Returns:
            [1, T/s, H, D].
        """
        received = _AllToAll.apply(attended[0].unflatten(0, (self.size, -1)), self.group)
        return received.transpose(0, 1).flatten(1, 2)[None]

    def gather_owned(self, owned: torch.Tensor, is_owned: torch.Tensor) -> torch.Tensor:
        """Bring together values that each rank computed at its own targets.

        Args:
            owned: [m, ...] this rank's values, with gradient.
            is_owned: [M] bool, which of all targets they belong to; every target is one rank's.

        Returns:
            [M, ...], the same on every rank; gradients flow back into this rank's own values only.
        """
        return _GatherOwned.apply(owned, is_owned, self.group)


class _AllToAll(torch.autograd.Function):
    """Piece i of the first dimension goes to rank i; the way back is the same exchange."""

    @staticmethod
    def forward(ctx: Any, pieces: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        ctx.group = group
        return _exchange(pieces, group)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _exchange(grads[0], ctx.group), None


def _exchange(pieces: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    sent = pieces.contiguous()
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent, group=group)
    return received


class _GatherOwned(torch.autograd.Function):
    """A sum of parts that are zero where they are another rank's: exact, and every rank's size may differ."""

    @staticmethod
    def forward(ctx: Any, owned: torch.Tensor, is_owned: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        ctx.save_for_backward(is_owned)
        whole = owned.new_zeros(is_owned.shape[0], *owned.shape[1:])
        whole[is_owned] = owned
        dist.all_reduce(whole, group=group)
        return whole

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (is_owned,) = ctx.saved_tensors
        return grads[0][is_owned], None, None
