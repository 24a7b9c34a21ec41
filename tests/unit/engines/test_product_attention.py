# SPDX-License-Identifier: Apache-2.0
"""Attention by products against the softmax written out, forward and backward, whole and in parts."""

from __future__ import annotations

import math

import pytest
import torch

from verl.engines import product_attention
from verl.engines.attention import BucketGrid, attend_on_grid
from verl.engines.product_attention import causal_attention, pays


def written_out(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    """One token at a time, one head at a time, in float64."""
    result = torch.zeros(query.shape, dtype=torch.float64)
    repeats = query.shape[1] // key.shape[1]
    for n in range(query.shape[0]):
        for head in range(query.shape[1]):
            keys, values = key[n, head // repeats].double(), value[n, head // repeats].double()
            rows = []
            for t in range(query.shape[2]):
                weights = torch.softmax(scale * keys[: t + 1] @ query[n, head, t].double(), dim=0)
                rows.append(weights @ values[: t + 1])
            result[n, head] = torch.stack(rows)
    return result


def random_heads(dtype: torch.dtype, n: int = 3, heads: int = 4, kv_heads: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(n, heads, 7, 8), (n, kv_heads, 7, 8), (n, kv_heads, 7, 8), (n, heads, 7, 8)]
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("cached_scores", [1 << 18, 1])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_results_and_gradients_equal_the_softmax_written_out(
    kv_heads: int, cached_scores: int, scale: float | None
) -> None:
    *tensors, grad = random_heads(torch.float32, kv_heads=kv_heads)
    ours, plain = ([x.clone().requires_grad_() for x in tensors] for _ in range(2))
    found = causal_attention(*ours, scale, cached_scores)
    wanted = written_out(*plain, 1 / math.sqrt(8) if scale is None else scale)
    torch.testing.assert_close(found, wanted.float(), atol=1e-6, rtol=1e-5)
    found.backward(grad)
    wanted.backward(grad.double())
    for mine, theirs in zip(ours, plain, strict=True):
        assert mine.grad is not None and theirs.grad is not None
        torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-5, rtol=1e-5)


def test_sixteen_bit_is_near_and_no_probabilities_are_kept_without_gradient() -> None:
    *tensors, _ = random_heads(torch.bfloat16)
    found = causal_attention(*tensors, None)
    assert found.dtype == torch.bfloat16 and found.grad_fn is None
    wanted = written_out(*tensors, 1 / math.sqrt(8))
    torch.testing.assert_close(found.double(), wanted, atol=0.02, rtol=0.02)


def test_packed_sequences_in_16_bit_take_this_way_and_others_do_not() -> None:
    assert pays("cpu", torch.bfloat16, product_attention.LONGEST)
    assert not pays("cpu", torch.bfloat16, product_attention.LONGEST + 1)
    assert not pays("cpu", torch.float32, 8) and not pays("cuda", torch.bfloat16, 8)
    lengths = [7, 2, 7, 5]
    packed = [torch.randn(1, heads, sum(lengths), 8, requires_grad=True) for heads in (4, 2, 2)]
    grid = BucketGrid.of(lengths, torch.device("cpu"))
    exact = attend_on_grid(*packed, grid, None)
    rounded = attend_on_grid(*(x.bfloat16() for x in packed), grid, None)
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), exact, atol=0.03, rtol=0.03)
    (gradient,) = torch.autograd.grad(rounded.float().square().sum(), packed[0])
    (wanted,) = torch.autograd.grad(exact.square().sum(), packed[0])
    torch.testing.assert_close(gradient, wanted, atol=0.1, rtol=0.1)
