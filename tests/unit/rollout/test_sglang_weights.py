# SPDX-License-Identifier: Apache-2.0
"""How a bundle is cut for an SGLang server, and the address under which it finds us."""

from __future__ import annotations

import pytest
import torch

from verl.rollout.sglang_weights import address_towards, buckets


@pytest.mark.parametrize(
    ("sizes", "limit_bytes", "runs"),
    [
        ([], 10, []),
        ([1, 1, 1], 12, [3]),
        ([1, 1, 1], 11, [2, 1]),
        ([9, 1, 1], 8, [1, 2]),  # a tensor over the limit is alone
        ([1, 9, 1], 8, [1, 1, 1]),
    ],
)
def test_runs_are_limited_and_in_order(sizes: list[int], limit_bytes: int, runs: list[int]) -> None:
    tensors = [(str(place), torch.zeros(size)) for place, size in enumerate(sizes)]
    found = list(buckets(tensors, limit_bytes))
    assert [len(run) for run in found] == runs
    assert [name for run in found for name, _ in run] == [name for name, _ in tensors]


def test_a_server_on_this_machine_finds_us_on_this_machine() -> None:
    assert address_towards("http://127.0.0.1:30000") == "127.0.0.1"
    assert address_towards("http://localhost:30000") == "127.0.0.1"
