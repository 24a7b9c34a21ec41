# SPDX-License-Identifier: Apache-2.0
"""The head benchmark: both ways agree, differences are seen, one run at the smallest size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.fused_head import Case, differences, main, parse, run_case


@pytest.mark.parametrize("with_entropy", [True, False])
def test_both_ways_agree(tmp_path: Path, with_entropy: bool) -> None:
    threads = torch.get_num_threads()
    values = []
    for way in ("chunks", "plain"):
        case = Case(way, 24, 50, 8, "float32", "cpu", with_entropy, chunk=7, repeats=1, threads=threads)
        assert run_case(case, str(tmp_path / way))["seconds"] > 0
        values.append(torch.load(tmp_path / way))
    assert len(values[0]) == (4 if with_entropy else 3) and values[1][0].shape == (24,)
    assert max(differences(*values).values()) < 1e-5


def test_a_difference_is_seen() -> None:
    same = [torch.ones(3), torch.full((2,), 4.0), torch.ones(2)]
    other = [torch.tensor([1.0, 1.5, 1.0]), torch.tensor([4.0, 3.0]), torch.ones(2)]
    assert differences(other, same) == {"values": 0.5, "gradients": 0.25}


def test_a_whole_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "result.json"
    arguments = ["--sizes", "16x40", "--hidden", "8", "--chunk", "5", "--repeats", "1", "--out", str(out)]
    assert main(arguments) == 0
    found = json.loads(out.read_text())["results"][0]
    assert found["tokens"] == 16 and found["differences"]["values"] < 1e-5
    assert "16 x 40" in capsys.readouterr().out
    assert parse(["--device", "cuda"]).dtype == "bfloat16"
