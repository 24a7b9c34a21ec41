# SPDX-License-Identifier: Apache-2.0
"""The training benchmark: its sequences, its agreement check, and one run of both sides at the smallest size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import train_step
from benchmarks.matrix_rate import data_sheet_rate, matrix_rate
from benchmarks.train_step import Outcome, main, make_sequences, parse


def test_sequences_have_the_lengths_asked_for() -> None:
    sequences = make_sequences([8, 3, 20], vocabulary=30)
    assert sequences.lengths().tolist() == [8, 3, 20]
    assert sequences.prompt_mask.sum(1).tolist() == [2, 1, 5]
    assert sequences.prompt_mask[1].tolist() == [0, 0, 0, 0, 1] and int(sequences.responses.max()) < 30


def test_sides_that_disagree_give_no_result() -> None:
    good = Outcome(1.0, 4.0, 2.0)
    train_step._check({"verl": good, "plain": Outcome(9.0, 4.0001, 2.0)}, 1e-4)
    for bad in (Outcome(1.0, 4.01, 2.0), Outcome(1.0, 4.0, 2.1), Outcome(1.0, float("nan"), 2.0)):
        with pytest.raises(RuntimeError, match="disagree"):
            train_step._check({"verl": good, "plain": bad}, 1e-4)


def test_a_matrix_product_has_a_rate() -> None:
    assert matrix_rate(torch.device("cpu"), torch.float32, size=64) > 1e6


def test_the_data_sheet_knows_16_bit_rates_by_the_names_that_torch_gives() -> None:
    assert data_sheet_rate("NVIDIA H200", torch.bfloat16) == data_sheet_rate("NVIDIA H100 80GB HBM3", torch.float16)
    assert data_sheet_rate("NVIDIA A100-SXM4-80GB", torch.bfloat16) == 312e12
    assert data_sheet_rate("NVIDIA H200", torch.float32) is None and data_sheet_rate("", torch.bfloat16) is None


SMALL = ["--shape", "tiny", "--sequences", "5", "--longest", "32", "--budget", "48", "--repeats", "1"]


def test_one_side_alone_trains_without_being_changed_by_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = []
    for more in ([], ["--optimizer", "--sides", "verl"]):
        assert main([*SMALL, *more, "--out", str(tmp_path / "result.json")]) == 0
        results.append(json.loads((tmp_path / "result.json").read_text()))
    both, alone = results
    assert alone["results"].keys() == {"verl"} and alone["ratio"] is None and both["ratio"] > 0
    for what in ("loss", "grad_norm"):
        assert alone["results"]["verl"][what] == pytest.approx(both["results"]["verl"][what], rel=1e-5)


@pytest.mark.parametrize("more", [[], ["--optimizer"]])
def test_both_sides_agree_in_a_whole_run(more: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "result.json"
    assert main([*SMALL, *more, "--out", str(out)]) == 0  # it compares loss and gradient norm itself
    result = json.loads(out.read_text())
    assert result["results"]["verl"]["loss"] == pytest.approx(result["results"]["plain"]["loss"], rel=1e-4)
    assert result["work"]["longest"] <= 32 and "verl / plain" in capsys.readouterr().out


def test_a_budget_below_the_longest_sequence_and_an_unknown_side_are_refused() -> None:
    for refused in (["--longest", "64", "--budget", "63"], ["--sides", "verl,trl"]):
        with pytest.raises(SystemExit):
            parse(refused)
    assert parse(["--longest", "64"]).budget == 512
