# SPDX-License-Identifier: Apache-2.0
"""Causal attention of short sequences by plain matrix products, for 16-bit numbers on a CPU. It knows no packing.

torch's attention kernel for CPUs gains nothing from bfloat16, while matrix products are several times faster in it. The
scores are exact products in float32; what is multiplied afterwards (probabilities, gradients) has the inputs' dtype.
The scores of a few sequences exist at a time, so that they stay in the core's cache; the probabilities are kept for the
backward pass, which is why this is for short sequences.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

LONGEST = 512
"""Tokens of a sequence up to which this is faster than torch's kernel (`benchmarks/cpu_attention.py`)."""
CACHED_SCORES = 1 << 18
"""Scores that exist at a time: 1 MiB of float32, what a core's own cache holds beside the inputs."""


def pays(device_type: str, dtype: torch.dtype, longest: int) -> bool:
    """Say whether attention by products is the faster way.

    Args:
        device_type: `cuda` or `cpu`.
        dtype: Of queries, keys and values.
        longest: Tokens of the longest sequence.
    """
    return device_type == "cpu" and dtype == torch.bfloat16 and longest <= LONGEST


def causal_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float | None,
    cached_scores: int = CACHED_SCORES,
) -> torch.Tensor:
    """Attend to the token itself and those before it.

    Args:
        query: [n, H, L, D].
        key: [n, H_kv, L, D]; H_kv divides H, and neighbouring query heads share a key head.
        value: [n, H_kv, L, D].
        scale: Factor of the scores; None for 1 / sqrt(D).
        cached_scores: Scores that exist at a time, at least those of one sequence and key head.

    Returns:
        [n, H, L, D] in the dtype of the inputs.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    attended: torch.Tensor = _Attention.apply(query, key, value, scale, cached_scores)
    return attended


class _Attention(torch.autograd.Function):
    """Heads that share keys lie one behind the other as rows of one matrix: [n * H_kv, H / H_kv * L, D].

    With P = softmax(scale * Q K^T): O = P V, dV = P^T dO, dS = P * (dP - sum(dP * P)) for dP = dO V^T,
    dQ = scale * dS K, dK = scale * dS^T Q.
    """

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, cached_scores: int
    ) -> torch.Tensor:
        n, kv_heads, length, dim = key.shape
        repeats = query.shape[1] // kv_heads
        rows = query.reshape(n * kv_heads, repeats * length, dim)
        keys, values = (x.reshape(n * kv_heads, length, dim) for x in (key, value))
        hidden = torch.full((length, length), float("-inf"), device=query.device).triu(1).repeat(repeats, 1)
        attended = torch.empty_like(rows)
        kept = rows.new_empty(len(rows), repeats * length, length) if any(ctx.needs_input_grad) else None
        for part in _parts(len(rows), repeats * length * length, cached_scores):
            scores = torch.baddbmm(hidden, rows[part].float(), keys[part].float().transpose(1, 2), alpha=scale)
            probabilities = torch.softmax(scores, dim=-1).to(rows.dtype)
            torch.bmm(probabilities, values[part], out=attended[part])
            if kept is not None:
                kept[part] = probabilities
        ctx.cached_scores = cached_scores
        ctx.scale, ctx.query_shape, ctx.key_shape = scale, query.shape, key.shape
        ctx.save_for_backward(rows, keys, values, kept)
        return attended.view(query.shape)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, keys, values, kept = ctx.saved_tensors
        grad = grads[0].reshape(rows.shape)
        grad_rows, grad_keys, grad_values = (torch.empty_like(x) for x in (rows, keys, values))
        for part in _parts(len(rows), kept[0].numel(), ctx.cached_scores):
            probabilities = kept[part]
            torch.bmm(probabilities.transpose(1, 2), grad[part], out=grad_values[part])
            of_probabilities = torch.bmm(grad[part], values[part].transpose(1, 2))
            of_scores = torch._softmax_backward_data(of_probabilities, probabilities, -1, rows.dtype).mul_(ctx.scale)
            torch.bmm(of_scores, keys[part], out=grad_rows[part])
            torch.bmm(of_scores.transpose(1, 2), rows[part], out=grad_keys[part])
        shaped = (grad_rows.view(ctx.query_shape), grad_keys.view(ctx.key_shape), grad_values.view(ctx.key_shape))
        return *shaped, None, None


def _parts(num_matrices: int, scores_each: int, cached_scores: int) -> Iterator[slice]:
    """Cut the matrices so that the scores of a part stay in the cache."""
    size = max(1, cached_scores // scores_each)
    for start in range(0, num_matrices, size):
        yield slice(start, start + size)
