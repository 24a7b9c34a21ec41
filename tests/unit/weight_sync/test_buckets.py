# SPDX-License-Identifier: Apache-2.0
"""Buckets: every tensor in exactly one, in order, the same bytes out as in."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from verl.weight_sync.buckets import buffer_bytes, pack, unpack

DTYPES = (torch.float32, torch.bfloat16, torch.float64, torch.uint8, torch.float16)


def tensors_of(sizes: list[tuple[int, int]]) -> list[tuple[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (f"w{i}", torch.randint(0, 100, (numel, 2), generator=generator).to(DTYPES[kind]).T)
        for i, (numel, kind) in enumerate(sizes)
    ]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, len(DTYPES) - 1)), max_size=12), st.integers(1, 500))
def test_what_is_packed_is_unpacked(sizes: list[tuple[int, int]], bucket_bytes: int) -> None:
    weights = tensors_of(sizes)
    buckets = list(pack(weights, bucket_bytes))
    read = []
    for bucket in buckets:
        assert bucket.flat.numel() == buffer_bytes(bucket.dtype_names, bucket.shapes)
        read += unpack(bucket.flat, bucket.names, bucket.dtype_names, bucket.shapes)
    assert [name for name, _ in read] == [name for name, _ in weights]
    for (_, expected), (_, tensor) in zip(weights, read, strict=True):
        assert tensor.dtype == expected.dtype
        assert torch.equal(tensor, expected)
    assert [bucket.is_last for bucket in buckets] == [False] * (len(buckets) - 1) + [True] * bool(weights)


def test_a_bucket_ends_with_the_tensor_that_fills_it() -> None:
    weights = [
        (name, torch.zeros(numel, dtype=torch.uint8)) for name, numel in zip("abcdef", (4, 6, 1, 50, 3, 3), strict=True)
    ]
    assert ["".join(bucket.names) for bucket in pack(weights, 10)] == ["abc", "d", "ef"]
    assert ["".join(bucket.names) for bucket in pack(weights, 1000)] == ["abcdef"]


def test_a_bucket_is_handed_on_before_the_next_one_is_gathered() -> None:
    asked: list[int] = []

    def gather():
        for index in range(6):
            asked.append(index)
            yield f"w{index}", torch.zeros(8, dtype=torch.uint8)

    buckets = pack(gather(), 10)
    first = next(buckets)
    assert first.names == ["w0", "w1"]
    assert asked == [0, 1, 2]  # one ahead, to know whether this bucket is the last


@pytest.mark.parametrize("dtype", DTYPES)
def test_tensors_are_views_where_the_alignment_allows_it(dtype: torch.dtype) -> None:
    (bucket,) = pack([("a", torch.ones(3, dtype=dtype)), ("b", torch.ones(2, dtype=dtype))], 1000)
    for _, tensor in unpack(bucket.flat, bucket.names, bucket.dtype_names, bucket.shapes):
        assert tensor.untyped_storage().data_ptr() == bucket.flat.untyped_storage().data_ptr()
