# SPDX-License-Identifier: Apache-2.0
"""The attention benchmark's own logic: lengths, agreement of the ways, and what is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.cpu_attention import WAYS, Heads, Rounds, compare, draw_lengths, main, padding_share, ways


@pytest.mark.parametrize("kind", ["equal", "uniform", "tail"])
def test_lengths_fill_the_budget(kind: str) -> None:
    lengths = draw_lengths(kind, tokens=500, longest=64)
    assert 500 - 64 < sum(lengths) <= 500
    assert 1 <= min(lengths) and max(lengths) <= 64
    assert (len(set(lengths)) == 1) is (kind == "equal")


def test_all_ways_give_attention_within_each_sequence() -> None:
    lengths, heads = [5, 2, 7], Heads(4, 2, 8)
    assert all(way["difference"] < 1e-5 for way in compare(lengths, heads, Rounds(1)).values())
    assert all(way["difference"] < 0.05 for way in compare(lengths, heads, Rounds(1, "bfloat16")).values())
    query, key, value = (torch.randn(1, n, 14, 8) for n in (4, 2, 2))
    alone = torch.nn.functional.scaled_dot_product_attention(
        query[:, :, 5:7], key[:, :, 5:7], value[:, :, 5:7], is_causal=True, enable_gqa=True
    )
    for attend in ways(lengths).values():
        torch.testing.assert_close(attend(query, key, value)[:, 5:7], alone.transpose(1, 2))


def test_padding_is_what_the_longest_adds() -> None:
    assert padding_share([10, 5], 1.0) == pytest.approx(0.25)
    assert padding_share([10, 5], 0.03) == 0.0


def test_the_program_writes_every_way(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    assert (
        main(["--tokens", "64", "--longest", "16", "--heads", "2", "1", "8", "--repeats", "1", "--out", str(out)]) == 0
    )
    results = json.loads(out.read_text())["results"]
    assert set(results) == {"equal", "uniform", "tail"}
    assert all(set(kind["ways"]) == set(WAYS) for kind in results.values())
