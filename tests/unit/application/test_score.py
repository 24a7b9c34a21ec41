# SPDX-License-Identifier: Apache-2.0
"""score.py on a tiny PRM: what it writes, that it goes on after a kill, and what it says of bad input."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import time
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch

from tests.helpers.programs import APPLICATION, read_jsonl, start_program, write_jsonl
from verl.rewards.prm import PRMScorer
from verl.rewards.prm.model import load_prm

ROWS = [
    {"id": n, "problem": f"What is {n} + {n}?", "response": "\n\n".join(f"step {k} of {n}" for k in range(1 + n % 4))}
    for n in range(11)
]
ADDED = ("step_scores", "traj_score", "prm_score", "num_steps", "prm_flags", "prm_error")


@pytest.fixture(scope="module")
def expected(prm):
    """Scores of ROWS by the library."""
    with PRMScorer.from_pretrained(str(prm), device="cpu") as scorer:
        return scorer.score([(row["problem"], row["response"]) for row in ROWS])


@pytest.fixture
def source(tmp_path):
    return write_jsonl(tmp_path / "in.jsonl", ROWS)


def options(prm: Path, source: Path, output: Path, *more: object) -> list[object]:
    common = ["--prm", prm, "--device", "cpu", "--self-test", "off"]
    return ["--input", source, "--output", output, *common, *more]


def check(rows, expected) -> None:
    assert [row["id"] for row in rows] == [row["id"] for row in ROWS]
    for row, scores in zip(rows, expected, strict=True):
        assert np.allclose(row["step_scores"], scores.step_scores, atol=1e-6)
        assert row["traj_score"] == pytest.approx(scores.traj_score, abs=1e-6)
        assert row["prm_score"] == pytest.approx(np.mean(scores.step_scores) + scores.traj_score, abs=1e-6)
        assert row["num_steps"] == len(scores.steps)
        assert row["prm_error"] is None


class TestOutput:
    @pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
    def test_scores_equal_the_librarys(self, score, prm, source, expected, tmp_path, suffix):
        output = tmp_path / f"new/out{suffix}"
        ended = score(*options(prm, source, output, "--batch-rows", 4))
        assert ended.code == 0, ended.err
        rows = read_jsonl(output) if suffix == ".jsonl" else pyarrow.parquet.read_table(output).to_pylist()
        check(rows, expected)
        assert list(rows[0]) == [*ROWS[0], *ADDED]
        report = json.loads((tmp_path / "new/out.report.json").read_text())
        assert (report["rows"], report["scored"], report["failed"]) == (11, 11, 0)
        assert sorted(path.name for path in output.parent.iterdir()) == sorted(["out.report.json", output.name])

    def test_reads_parquet_with_chat_messages_and_lists_of_steps(self, score, prm, expected, tmp_path):
        rows = [
            {
                "id": row["id"],
                "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": row["problem"]}],
                "answer": row["response"].split("\n\n"),
            }
            for row in ROWS
        ]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "in.parquet")
        ended = score(*options(prm, tmp_path / "in.parquet", tmp_path / "out.jsonl", "--write-steps"))
        assert ended.code == 0, ended.err
        got = read_jsonl(tmp_path / "out.jsonl")
        check(got, expected)
        assert got[3]["steps"] == rows[3]["answer"]

    def test_eq11_options(self, score, prm, source, expected, tmp_path):
        output = tmp_path / "out.jsonl"
        assert score(*options(prm, source, output, "--alpha", 0.5, "--aggregation", "product")).code == 0
        for row, scores in zip(read_jsonl(output), expected, strict=True):
            wanted = math.prod(float(s) for s in scores.step_scores) + 0.5 * scores.traj_score
            assert row["prm_score"] == pytest.approx(wanted, abs=1e-6)

    def test_rows_with_many_responses_are_taken_apart(self, score, prm, tmp_path):
        source = write_jsonl(tmp_path / "in.jsonl", [{"prompt": "p", "responses": ["a\n\nb", "c"]}, {"prompt": "q"}])
        output = tmp_path / "out.jsonl"
        assert score(*options(prm, source, output)).code == 0
        rows = read_jsonl(output)
        shown = [(row.get("response"), row.get("problem_index"), row.get("response_index")) for row in rows]
        assert shown == [("a\n\nb", 0, 0), ("c", 0, 1), (None, None, None)]
        assert [row["num_steps"] for row in rows] == [2, 1, 0]
        assert "list of responses" in rows[2]["prm_error"]

    def test_existing_columns_are_not_written_over(self, score, prm, tmp_path):
        source = write_jsonl(tmp_path / "in.jsonl", [{"problem": "p", "response": "r", "step_scores": [7]}])
        ended = score(*options(prm, source, tmp_path / "out.jsonl"))
        assert ended.code == 2
        assert "already has step_scores" in ended.err
        assert score(*options(prm, source, tmp_path / "out.jsonl", "--prefix", "new_")).code == 0
        (row,) = read_jsonl(tmp_path / "out.jsonl")
        assert row["step_scores"] == [7]
        assert len(row["new_step_scores"]) == 1


class TestRowsThatCannotBeScored:
    def test_each_stays_with_its_reason(self, score, prm, tmp_path):
        rows = [
            {"problem": "p", "response": "fine"},
            "{broken",
            '["a list"]',
            {"problem": "p", "response": " \n"},
            {"problem": "p", "response": None},
            {"problem": "p", "response": ["a", 3]},
            {"problem": 5, "response": "r"},
            {"problem": "", "response": "r"},
            {"problem": "p", "response": "<think>\n\n</think>"},
            {"problem": "long " * 400, "response": "r"},
            {"problem": "p", "response": "also fine"},
        ]
        reasons = (
            None,
            "line 2 is not readable",
            "not list",
            "'response' is empty",
            "not NoneType",
            "other things than texts",
            "not int",
            "'problem' is empty",
            "no reasoning step",
            "tokens",
            None,
        )
        source = write_jsonl(tmp_path / "in.jsonl", rows)
        ended = score(*options(prm, source, tmp_path / "out.jsonl"))
        assert ended.code == 0, ended.err
        got = read_jsonl(tmp_path / "out.jsonl")
        assert len(got) == len(rows)
        for row, reason in zip(got, reasons, strict=True):
            assert (row["prm_error"] is None) == (reason is None)
            assert reason is None or reason in row["prm_error"]
            assert (row["prm_score"] is None) == (reason is not None)
        report = json.loads((tmp_path / "out.report.json").read_text())
        assert (report["scored"], report["failed"]) == (2, 9)
        assert re.search(r"failed +9\n", ended.out)

    def test_undecodable_line(self, score, prm, tmp_path):
        source = tmp_path / "in.jsonl"
        source.write_bytes(b'{"problem": "p", "response": "r"}\n{"problem": "\xff\xfe"}\n')
        assert score(*options(prm, source, tmp_path / "out.parquet")).code == 0
        good, bad = pyarrow.parquet.read_table(tmp_path / "out.parquet").to_pylist()
        assert good["prm_error"] is None
        assert "line 2 is not readable" in bad["prm_error"]
        assert bad["problem"] is None


class TestInterruption:
    def test_a_killed_run_goes_on(self, score, prm, tmp_path):
        """Kill -9 in the middle; the second run scores the rest alone, and the output is that of one run."""
        rows = [{"id": n, "problem": f"{n}?", "response": f"one {n}\n\ntwo"} for n in range(600)]
        source, output = write_jsonl(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
        arguments = options(prm, source, output, "--batch-rows", 1)
        journal = tmp_path / "out.jsonl.journal"
        process = start_program("score", *arguments)
        deadline = time.monotonic() + 300
        while not (journal.is_file() and journal.read_bytes().count(b"\n") > 5):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        assert not output.exists()
        with journal.open("ab") as file:
            file.write(b'{"row": 599, "step_sco')  # what a kill in the middle of a write leaves
        num_done = journal.read_bytes().count(b"\n") - 1
        assert 5 <= num_done < len(rows)
        ended = score(*options(prm, source, output, "--batch-rows", 64))
        assert ended.code == 0, ended.err
        assert not journal.exists()
        assert json.loads((tmp_path / "out.report.json").read_text())["rows_of_earlier_runs"] == num_done
        whole = tmp_path / "whole.jsonl"
        assert score(*options(prm, source, whole, "--batch-rows", 64)).code == 0
        got, wanted = read_jsonl(output), read_jsonl(whole)
        assert [row["id"] for row in got] == list(range(600))
        for row, reference in zip(got, wanted, strict=True):
            assert np.allclose(row["step_scores"], reference["step_scores"], atol=1e-5)

    def test_work_of_another_run_is_not_mixed_in(self, score, prm, source, tmp_path):
        output = tmp_path / "out.jsonl"
        assert score(*options(prm, source, output)).code == 0
        report = json.loads((tmp_path / "out.report.json").read_text())
        header = {"run": {k: v for k, v in report["run"].items() if k not in ("alpha", "aggregation", "prefix")}}
        entry = {"row": 0, "step_scores": [0.5], "traj_score": 0.5, "flags": [], "error": None, "num_steps": 1}
        output.unlink()
        journal = write_jsonl(tmp_path / "out.jsonl.journal", [header, entry])
        ended = score(*options(prm, source, output, "--score-space", "signed"))
        assert ended.code == 2
        assert "unfinished run with another score_space" in ended.err
        assert score(*options(prm, source, output)).code == 0
        assert read_jsonl(output)[0]["step_scores"] == [0.5], "the journal's row is taken over"
        output.unlink()
        write_jsonl(journal, [header, entry])
        assert score(*options(prm, source, output, "--score-space", "signed", "--overwrite")).code == 0
        assert read_jsonl(output)[0]["step_scores"] != [0.5]

    def test_finished_run_is_not_done_again(self, score, prm, source, tmp_path):
        output = tmp_path / "out.jsonl"
        assert score(*options(prm, source, output)).code == 0
        written = output.stat().st_mtime_ns
        ended = score(*options(prm, source, output))
        assert ended.code == 0
        assert "nothing to do" in ended.out
        assert output.stat().st_mtime_ns == written
        ended = score(*options(prm, source, output, "--alpha", 0.1))
        assert ended.code == 2
        assert "--overwrite" in ended.err
        assert score(*options(prm, source, output, "--alpha", 0.1, "--overwrite")).code == 0

    def test_a_run_that_never_began_leaves_nothing_in_the_way(self, score, prm, source, tmp_path):
        output = tmp_path / "out.jsonl"
        assert score(*options(tmp_path / "no_prm", source, output)).code == 2
        assert score(*options(prm, source, output)).code == 0


class TestUserErrors:
    @pytest.mark.parametrize(
        "case",
        [
            ("in.jsonl", [{"question": "p", "text": "r"}], (), "no column 'response'"),
            ("in.jsonl", ROWS, ("--problem-column", "task"), "no column 'task'"),
            ("in.jsonl", [], (), "no rows"),
            ("in.jsonl", ["", ""], (), "no rows"),
            ("in.jsonl", ["{broken"], (), "no row of this file can be read"),
            ("in.csv", ROWS, (), "a name ending in .parquet"),
            ("in.parquet", ROWS, (), "not readable as parquet"),
            ("in.jsonl", ROWS, ("--workers", 0), "--workers=0"),
            ("in.jsonl", ROWS, ("--batch-rows", 0), "--batch-rows=0"),
            ("in.jsonl", ROWS, ("--alpha", "nan"), "finite"),
            ("in.jsonl", ROWS, ("--score-space", "signed", "--aggregation", "prod"), "probabilities"),
            ("in.jsonl", ROWS, ("--min-step-chars", 9, "--max-step-chars", 5), "max_step_chars=5"),
            ("in.jsonl", ROWS, ("--adapter", "nonsense"), "nonsense"),
        ],
    )
    def test_one_sentence_and_exit_code_2(self, score, prm, tmp_path, case):
        name, rows, more, message = case
        source = write_jsonl(tmp_path / name, rows)
        ended = score(*options(prm, source, tmp_path / "out.jsonl", *more))
        assert ended.code == 2
        assert message in ended.err
        assert "Traceback" not in ended.err
        assert not (tmp_path / "out.jsonl").exists()

    def test_output_names(self, score, prm, source, tmp_path):
        assert "a name ending in" in score(*options(prm, source, tmp_path / "out.txt")).err
        assert "this is a folder" in score(*options(prm, source, tmp_path)).err
        assert "this is the input" in score(*options(prm, source, source, "--overwrite")).err
        assert "does not exist" in score(*options(prm, tmp_path / "gone.jsonl", tmp_path / "out.jsonl")).err

    def test_column_that_parquet_cannot_hold(self, score, prm, tmp_path):
        rows = [{"problem": "p", "response": "r", "mixed": 1}, {"problem": "p", "response": "r", "mixed": "a"}]
        ended = score(*options(prm, write_jsonl(tmp_path / "in.jsonl", rows), tmp_path / "out.parquet"))
        assert ended.code == 2
        assert "Write JSON Lines (.jsonl) instead" in ended.err
        assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"], "told before anything was scored"

    def test_a_prm_with_reversed_classes(self, score, prm, source, tmp_path):
        """Of a random PRM and the same with its classes swapped, exactly one fails the self-test."""
        model = load_prm(str(prm), torch.float32)
        swapped = tmp_path / "swapped"
        for part in (model.score[2].weight, model.score[2].bias):
            part.data = part.data.flip(0)
        model.save_pretrained(swapped)
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            (swapped / name).write_bytes((prm / name).read_bytes())
        codes = {}
        for folder in (prm, swapped):
            arguments = ["--input", source, "--prm", folder, "--device", "cpu", "--overwrite"]
            ended = score(*arguments, "--output", tmp_path / "stop.jsonl", "--self-test", "stop")
            codes[ended.code] = ended
            assert score(*arguments, "--output", tmp_path / "warn.jsonl").code == 0, "the default warns"
        assert set(codes) == {0, 2}
        assert "right" in codes[2].err


def test_runs_from_its_own_folder_and_shows_its_help():
    process = start_program("score", "--help", folder=APPLICATION)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "--workers" in out
    assert "Eq. 11" in out


def test_a_list_of_responses_goes_before_a_column_that_may_be_the_true_answer(score, prm, tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", [{"prompt": "p", "answer": "7", "responses": ["a", "b\n\nc"]}])
    assert score(*options(prm, source, tmp_path / "out.jsonl")).code == 0
    assert [row["num_steps"] for row in read_jsonl(tmp_path / "out.jsonl")] == [1, 2]
