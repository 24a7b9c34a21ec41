# SPDX-License-Identifier: Apache-2.0
"""The scoring benchmark: refusing what proves nothing, rates from times, and one whole run at the smallest size."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.prm_scoring import DisagreementError, compare, main, parse, show, summarise, take_turns

SPREAD = [np.array([0.1, 0.9]), np.array([0.5])]


def test_equal_scores_are_accepted_and_the_largest_difference_is_told() -> None:
    near = [np.array([0.1, 0.9004]), np.array([0.5])]
    assert compare({"loop": SPREAD, "hf": near}, 1e-3) == {"loop": 0.0, "hf": pytest.approx(4e-4)}


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ([np.array([0.1, 0.9]), np.array([0.52])], "differ by 0.02"),
        ([np.array([0.1]), np.array([0.9, 0.5])], "number of steps"),
        ([np.array([0.1, np.nan]), np.array([0.5])], "differ by nan"),
    ],
    ids=["value", "count", "nan"],
)
def test_disagreement_gives_no_result(other: list[np.ndarray], message: str) -> None:
    with pytest.raises(DisagreementError, match=message):
        compare({"loop": SPREAD, "hf": other}, 1e-3)


def test_scores_that_are_all_alike_prove_nothing() -> None:
    alike = [np.array([0.5, 0.5]), np.array([0.5])]
    with pytest.raises(DisagreementError, match="prove nothing"):
        compare({"loop": alike, "hf": alike}, 1e-3)


def test_ways_take_turns() -> None:
    calls: list[str] = []

    class Way:
        def __init__(self, name: str) -> None:
            self.name = name

        def score(self, requests: object) -> list[np.ndarray]:
            calls.append(self.name)
            return []

    seconds = take_turns({"a": Way("a"), "b": Way("b")}, [], 3)
    assert calls == ["a", "b"] * 3
    assert [len(each) for each in seconds.values()] == [3, 3]


def test_rates_are_medians_and_ratios_are_to_the_loop() -> None:
    results = summarise({"loop": [2.0, 1.0, 9.0], "hf": [0.5, 0.5, 1.0]}, 1000, {"loop": 0.0, "hf": 1e-6})
    assert results["loop"]["tokens_per_s"] == 500.0 and results["loop"]["over_loop"] == 1.0
    assert results["hf"]["tokens_per_s"] == 2000.0 and results["hf"]["over_loop"] == 4.0
    assert (results["hf"]["slowest"], results["hf"]["fastest"]) == (1000.0, 2000.0)


def test_without_the_loop_there_is_no_ratio() -> None:
    assert summarise({"hf": [1.0]}, 10, {"hf": 0.0})["hf"]["over_loop"] is None


def test_a_whole_run_writes_and_shows_its_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "result.json"
    arguments = ["--ways", "hf,loop", "--shape", "tiny", "--answers", "5", "--longest_chars", "300"]
    assert main([*arguments, "--repeats", "2", "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    assert result["benchmark"] == "prm_scoring" and result["settings"]["shape"] == "tiny"
    assert result["work"]["answers"] == 5 and result["work"]["tokens"] > result["work"]["longest"] > 300
    assert list(result["results"]) == ["loop", "hf"], "everything is compared with the loop"
    for each in result["results"].values():
        assert each["tokens_per_s"] > 0 and len(each["seconds"]) == 2 and each["max_abs_diff"] <= 1e-3
    shown = capsys.readouterr().out
    assert show(result) in shown and "HFScorer" in shown and "README loop" in shown


def test_a_run_whose_scores_prove_nothing_ends_with_1_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "result.json"
    arguments = ["--ways", "loop", "--shape", "tiny", "--answers", "3", "--tolerance", "0.5"]
    assert main([*arguments, "--out", str(out)]) == 1  # no spread of probabilities is twice as large
    assert "no result" in capsys.readouterr().err and not out.exists()


def test_an_unknown_way_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--ways", "hf,teleport"])
    assert "teleport unknown" in capsys.readouterr().err
