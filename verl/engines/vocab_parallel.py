# SPDX-License-Identifier: Apache-2.0
"""Log-probs and entropy of tokens when each rank holds a slice of the vocabulary, in chunks. It knows no model.

Sums over the vocabulary are sums over the ranks of one number per token, so a chunk's logits [c, V / ranks] are all
that ever exists. Equal to `verl.algorithms.log_probs` on the whole vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F


@dataclass(frozen=True)
class VocabSlice:
    """This rank's rows of the output weight.

    Args:
        start: Token id of its first row.
        size: Rows that stand for tokens; rows behind them are padding, and never count.
        group: The ranks that hold the other rows; None if there are none.
    """

    start: int
    size: int
    group: dist.ProcessGroup | None = None

    def reduce(self, values: torch.Tensor, op: dist.ReduceOp.RedOpType) -> torch.Tensor:
        """Combine over the ranks, in place; returns its argument."""
        if self.group is not None and self.group.size() > 1:
            dist.all_reduce(values, op=op, group=self.group)
        return values

    def places(self, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Say which labels lie here, and in which rows (0 for the others)."""
        is_here = (labels >= self.start) & (labels < self.start + self.size)
        return is_here, torch.where(is_here, labels - self.start, 0)


@dataclass(frozen=True)
class VocabParallelHead:
    """What to compute of each token's distribution.

    Args:
        vocab: This rank's slice.
        temperature: Logits are divided by it, above 0.
        with_entropy: Whether the entropy is wanted too (nats).
        chunk_tokens: Tokens whose logits exist at the same time, at least 1.
    """

    vocab: VocabSlice
    temperature: float = 1.0
    with_entropy: bool = False
    chunk_tokens: int = 1024

    def __call__(
        self, hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Compute log softmax(hidden @ W.T / temperature) at the labels, W being the slices of all ranks together.

        Collective over the group; forward only. The gradient of `hidden` holds this rank's slice's part: sum it over
        the group before the layers below (Megatron's regions do).

        Args:
            hidden: [M, H], the same on every rank.
            weight: [at least `vocab.size`, H], this rank's rows.
            labels: [M] int64, the same on every rank.

        Returns:
            log-probs [M] float32; entropy [M] float32 or None; the same on every rank.
        """
        log_probs, entropy = _Head.apply(hidden, weight, labels, self)
        return log_probs, entropy if self.with_entropy else None

    def logits(self, hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """This rank's columns of the scaled logits: [c, size] float32."""
        return F.linear(hidden, weight[: self.vocab.size]).float() / self.temperature

    def chunks(self, num_tokens: int) -> Iterator[slice]:
        """Cut the tokens."""
        for start in range(0, num_tokens, self.chunk_tokens):
            yield slice(start, min(start + self.chunk_tokens, num_tokens))


class _Head(torch.autograd.Function):
    """Logits are computed anew in the backward pass; between the passes two numbers per token are kept.

    With l the scaled logits, Z = logsumexp(l), p = exp(l - Z) and m = sum(p l): log-prob = l[label] - Z,
    entropy = Z - m, d log-prob / d l = [label] - p, d entropy / d l = -p (l - m).
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, head: VocabParallelHead
    ) -> tuple[torch.Tensor, torch.Tensor]:
        log_probs = torch.empty(labels.shape, dtype=torch.float32, device=hidden.device)
        normaliser, mean_logit = torch.empty_like(log_probs), torch.empty_like(log_probs)
        for rows in head.chunks(len(labels)):
            logits = head.logits(hidden[rows], weight)
            largest = head.vocab.reduce(logits.amax(dim=-1), dist.ReduceOp.MAX)
            is_here, place = head.vocab.places(labels[rows])
            chosen = logits.gather(-1, place[:, None])[:, 0] * is_here
            exponentials = torch.exp(logits - largest[:, None])
            weighted = (exponentials * logits).sum(-1) if head.with_entropy else torch.zeros_like(chosen)
            total, chosen, weighted = head.vocab.reduce(
                torch.stack([exponentials.sum(-1), chosen, weighted]), dist.ReduceOp.SUM
            )
            normaliser[rows] = largest + total.log()
            mean_logit[rows] = weighted / total
            log_probs[rows] = chosen - normaliser[rows]
        ctx.head = head
        ctx.save_for_backward(hidden, weight, labels, normaliser, mean_logit)
        entropy = normaliser - mean_logit
        if not head.with_entropy:
            ctx.mark_non_differentiable(entropy)
        return log_probs, entropy

    @staticmethod
    def backward(
        ctx: Any, grad_log_probs: torch.Tensor, grad_entropy: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, None, None]:
        head: VocabParallelHead = ctx.head
        hidden, weight, labels, normaliser, mean_logit = ctx.saved_tensors
        grad_hidden = torch.zeros_like(hidden)
        # Summed in float32: chunks of 16-bit sums would lose what small gradients add to large ones.
        grad_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
        rows_of_tokens = weight[: head.vocab.size]
        for rows in head.chunks(len(labels)):
            logits = head.logits(hidden[rows], weight)
            probabilities = torch.exp(logits - normaliser[rows, None])
            factor = -grad_log_probs[rows, None]
            if head.with_entropy:
                factor = factor - grad_entropy[rows, None] * (logits - mean_logit[rows, None])
            grad_logits = probabilities * factor
            is_here, place = head.vocab.places(labels[rows])
            grad_logits.scatter_add_(1, place[:, None], (grad_log_probs[rows] * is_here)[:, None])
            grad_logits = (grad_logits / head.temperature).to(weight.dtype)
            grad_hidden[rows] = grad_logits @ rows_of_tokens
            grad_weight[: head.vocab.size] += grad_logits.t() @ hidden[rows]
        return grad_hidden, grad_weight.to(weight.dtype), None, None
