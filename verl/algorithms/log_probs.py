# SPDX-License-Identifier: Apache-2.0
"""Log-probs and entropy of tokens, in chunks, so that no [tokens, vocabulary] matrix of a whole batch ever exists.

Knows no model: it takes the last hidden states and the output weight. The chunks go through activation checkpointing,
so forward and backward each hold one chunk of logits at a time.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

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

    The product is taken in the dtype of its inputs, everything after it in float32. In units of one float32 chunk
    (`chunk_tokens` * V * 4 bytes) the measured peak is 3 forward, 4 with entropy and 6 backward, whatever T is.

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
    keeps_graph = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    parts = []
    for start in range(0, labels.shape[0], chunk_tokens):
        rows = slice(start, start + chunk_tokens)
        chunk = (hidden[rows], weight, labels[rows], temperature, with_entropy)
        if keeps_graph:
            parts.append(checkpoint(_chunk_log_probs, *chunk, use_reentrant=False, preserve_rng_state=False))
        else:
            parts.append(_chunk_log_probs(*chunk))
    if not parts:
        empty = F.linear(hidden, weight).float().sum(-1)  # keeps the graph: a rank without tokens has a backward too
        return empty, empty if with_entropy else None
    log_probs = torch.cat([part[0] for part in parts])
    return log_probs, torch.cat([part[1] for part in parts]) if with_entropy else None


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


def _chunk_log_probs(
    hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, temperature: float, with_entropy: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    return log_probs_from_logits(F.linear(hidden, weight), labels, temperature, with_entropy)


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
