# SPDX-License-Identifier: Apache-2.0
"""Log-probs and entropy of tokens, in chunks, so that no [tokens, vocabulary] matrix of a whole batch ever exists.

Knows no model: it takes the last hidden states and the output weight, all of it or some rows of it. Forward and
backward each hold one chunk of logits at a time; the backward pass computes them again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

DEFAULT_CHUNK_TOKENS = 1024


def log_probs_from_hidden(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    temperature: float = 1.0,
    with_entropy: bool = False,
    chunk_tokens: int = DEFAULT_CHUNK_TOKENS,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Compute log softmax(hidden @ weight.T / temperature) at the labels, chunk by chunk.

    The product is taken in the dtype of its inputs, everything after it in float32, the sum of the weight's gradient
    over the chunks too: [V, H] float32 while the backward pass lasts.

    Args:
        hidden: [T, H] float32 or bfloat16, the states from which the labels are predicted (already shifted).
        weight: [V, H] plain tensor in the same dtype (under FSDP: unsharded), gradients flow into it.
        labels: [T] int64 in [0, V).
        temperature: Sampling temperature the log-probs belong to, above 0.
        with_entropy: Whether the entropy of each distribution is wanted too (nats).
        chunk_tokens: Tokens per chunk, at least 1.

    Returns:
        log-probs [T] float32; entropy [T] float32 or None. Both carry gradients where the inputs do.

    Raises:
        ValueError: Shapes disagree, or temperature or chunk_tokens is out of range.
    """
    _check_inputs(hidden, weight, labels, temperature, chunk_tokens)
    return ChunkedHead(VocabSlice(0, weight.shape[0]), temperature, with_entropy, chunk_tokens)(hidden, weight, labels)


def log_probs_from_logits(
    logits: torch.Tensor, labels: torch.Tensor, temperature: float = 1.0, with_entropy: bool = False
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Compute log softmax(logits / temperature) at the labels, from logits that exist anyway.

    Args:
        logits: [..., V] float of any precision.
        labels: [...] int64 in [0, V).
        temperature: Sampling temperature, above 0.
        with_entropy: Whether the entropy is wanted too (nats).

    Returns:
        log-probs [...] float32; entropy [...] float32 or None.
    """
    scaled = logits.float() / temperature
    log_normaliser = torch.logsumexp(scaled, dim=-1)
    chosen = scaled.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    if not with_entropy:
        return chosen - log_normaliser, None
    mean_logit = (torch.softmax(scaled, dim=-1) * scaled).sum(-1)
    return chosen - log_normaliser, log_normaliser - mean_logit


@dataclass(frozen=True)
class VocabSlice:
    """The rows of the output weight that are at hand: all of them, or with `reduce` some of a vocabulary spread out.

    Args:
        start: Token id of the first row.
        size: Rows that stand for tokens; rows behind them are padding, and never count.
    """

    start: int
    size: int

    def reduce(self, values: torch.Tensor, op: Literal["sum", "max"]) -> torch.Tensor:
        """Combine numbers per token with those of the holders of the other rows; here there are none."""
        return values

    def places(self, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Say which labels lie here, and in which rows (0 for the others)."""
        is_here = (labels >= self.start) & (labels < self.start + self.size)
        return is_here, torch.where(is_here, labels - self.start, 0)


@dataclass(frozen=True)
class ChunkedHead:
    """What to compute of each token's distribution.

    Args:
        vocab: The rows at hand.
        temperature: Logits are divided by it, above 0.
        with_entropy: Whether the entropy is wanted too (nats).
        chunk_tokens: Tokens whose logits exist at the same time, at least 1.
    """

    vocab: VocabSlice
    temperature: float = 1.0
    with_entropy: bool = False
    chunk_tokens: int = DEFAULT_CHUNK_TOKENS

    def __call__(
        self, hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Compute log softmax(hidden @ W.T / temperature) at the labels, W being the rows of all holders together.

        The forward pass is collective over them. The gradient of `hidden` holds the part of the rows at hand: sum it
        over the holders before the layers below (Megatron's regions do).

        Args:
            hidden: [T, H], the same for every holder.
            weight: [at least `vocab.size`, H], the rows at hand.
            labels: [T] int64, the same for every holder.

        Returns:
            log-probs [T] float32; entropy [T] float32 or None; the same for every holder.
        """
        log_probs, entropy = _Head.apply(hidden, weight, labels, self)
        return log_probs, entropy if self.with_entropy else None

    def logits(self, hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Scaled logits of the rows at hand: [c, size] float32, memory of their own."""
        logits = F.linear(hidden, weight[: self.vocab.size]).float()
        return logits if self.temperature == 1.0 else logits.div_(self.temperature)

    def chunks(self, num_tokens: int) -> Iterator[slice]:
        """Cut the tokens."""
        for start in range(0, num_tokens, self.chunk_tokens):
            yield slice(start, min(start + self.chunk_tokens, num_tokens))


class _Head(torch.autograd.Function):
    """Between the passes two numbers per token are kept.

    With l the scaled logits, Z = logsumexp(l), p = exp(l - Z) and m = sum(p l): log-prob = l[label] - Z,
    entropy = Z - m, d log-prob / d l = [label] - p, d entropy / d l = -p (l - m).
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, head: ChunkedHead
    ) -> tuple[torch.Tensor, torch.Tensor]:
        log_probs = torch.empty(labels.shape, dtype=torch.float32, device=hidden.device)
        normaliser, mean_logit = torch.empty_like(log_probs), torch.empty_like(log_probs)
        for rows in head.chunks(len(labels)):
            logits = head.logits(hidden[rows], weight)
            largest = head.vocab.reduce(logits.amax(dim=-1), "max")
            is_here, place = head.vocab.places(labels[rows])
            chosen = logits.gather(-1, place[:, None])[:, 0] * is_here
            exponentials = torch.exp(logits - largest[:, None])
            total = exponentials.sum(-1)
            weighted = exponentials.mul_(logits).sum(-1) if head.with_entropy else torch.zeros_like(chosen)
            total, chosen, weighted = head.vocab.reduce(torch.stack([total, chosen, weighted]), "sum")
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
    @once_differentiable
    def backward(
        ctx: Any, grad_log_probs: torch.Tensor, grad_entropy: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None]:
        head: ChunkedHead = ctx.head
        hidden, weight, labels, normaliser, mean_logit = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        # Summed in float32: chunks of 16-bit sums would lose what small gradients add to large ones.
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for rows in head.chunks(len(labels)):
            logits = head.logits(hidden[rows], weight)
            grads = (grad_log_probs[rows], grad_entropy[rows])
            kept = (normaliser[rows], mean_logit[rows])
            grad_logits = _logits_gradient(head, logits, labels[rows], grads, kept).to(weight.dtype)
            if grad_hidden is not None:
                grad_hidden[rows] = grad_logits @ weight[: head.vocab.size]
            if grad_weight is not None:
                grad_weight[: head.vocab.size] += grad_logits.t() @ hidden[rows]
        return grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype), None, None


def _logits_gradient(
    head: ChunkedHead,
    logits: torch.Tensor,
    labels: torch.Tensor,
    grads: tuple[torch.Tensor, torch.Tensor],
    kept: tuple[torch.Tensor, torch.Tensor],
) -> torch.Tensor:
    """Gradient of a chunk's unscaled logits, [c, size] float32; `logits` are used up.

    `grads` are those of log-prob and entropy, `kept` are Z and m, all [c].
    """
    grad_log_probs, grad_entropy = grads
    normaliser, mean_logit = (values[:, None] for values in kept)
    gradient = torch.exp(logits - normaliser)
    if head.with_entropy:
        factor = logits.sub_(mean_logit).mul_(-grad_entropy[:, None]).sub_(grad_log_probs[:, None])
        gradient.mul_(factor)
    else:
        gradient.mul_(-grad_log_probs[:, None])
    is_here, place = head.vocab.places(labels)
    gradient.scatter_add_(1, place[:, None], (grad_log_probs * is_here)[:, None])
    return gradient if head.temperature == 1.0 else gradient.div_(head.temperature)


def _check_inputs(
    hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, temperature: float, chunk_tokens: int
) -> None:
    if hidden.ndim != 2 or weight.ndim != 2 or labels.shape != hidden.shape[:1] or weight.shape[1] != hidden.shape[1]:
        shapes = [tuple(value.shape) for value in (hidden, weight, labels)]
        raise ValueError(f"expected hidden [T, H], weight [V, H], labels [T], found {shapes}")
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, found {temperature}")
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens must be at least 1, found {chunk_tokens}")
