# SPDX-License-Identifier: Apache-2.0
"""select_data.py: what is kept, that the SFT trainer's data set reads it, the report, and bad input."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pyarrow.parquet
import pytest

from tests.helpers.programs import read_jsonl, write_jsonl
from tests.helpers.tokenizers import byte_tokenizer
from verl.config.sft import SFTDataConfig
from verl.data.sft_dataset import SFTDataset

PNG = b"\x89PNG\r\n\x1a\n"


def scored(number: int, prompt: str, source: str, steps: list[float] | None) -> dict:
    """A row as score.py writes it; Eq. 11 of it is mean + last."""
    return {
        "id": number,
        "prompt": prompt,
        "response": f"one {number}\n\ntwo",
        "data_source": source,
        "step_scores": steps or [],
        "traj_score": steps[-1] if steps else None,
        "prm_flags": [],
        "prm_error": None if steps else "'response' is empty",
    }


ROWS = [
    scored(0, "p", "math", [0.2, 0.4]),
    scored(1, "p", "math", [0.9, 0.9]),
    scored(2, "q", "math", [0.5]),
    scored(3, "q", "code", [0.8, 0.1]),
    scored(4, "q", "code", None),
    scored(5, "r", "code", [0.6]),
]
EQ11 = [0.7, 1.8, 1.0, 0.55, None, 1.2]


@pytest.fixture
def source(tmp_path):
    return write_jsonl(tmp_path / "scored.jsonl", ROWS)


def read(path: Path) -> list[dict]:
    return pyarrow.parquet.read_table(path).to_pylist()


def kept(program, source, output, *more) -> list[int]:
    ended = program("--input", source, "--output", output, "--overwrite", *more)
    assert ended.code == 0, ended.err
    return [row["id"] for row in read(output)]


class TestSelection:
    def test_limits(self, select_data, source, tmp_path):
        output = tmp_path / "kept.parquet"
        assert kept(select_data, source, output, "--top-k", 2) == [1, 5]
        assert kept(select_data, source, output, "--per-prompt", 1) == [1, 2, 5]
        assert kept(select_data, source, output, "--threshold", 1.0) == [1, 2, 5]
        assert kept(select_data, source, output, "--quota", 1) == [1, 5]
        assert kept(select_data, source, output, "--quota", "math=2", "--quota", "code=1") == [1, 2, 5]
        assert kept(select_data, source, output, "--per-prompt", 1, "--quota", "math=1", "--top-k", 9) == [1, 5]

    def test_other_scores(self, select_data, source, tmp_path):
        output = tmp_path / "kept.parquet"
        assert kept(select_data, source, output, "--top-k", 2, "--alpha", 0, "--aggregation", "min") == [1, 5]
        assert kept(select_data, source, output, "--top-k", 1, "--alpha", -5) == [3]
        assert kept(select_data, source, output, "--top-k", 2, "--score-column", "id") == [4, 5]

    def test_report_and_histogram(self, select_data, source, tmp_path):
        output = tmp_path / "kept.parquet"
        ended = select_data("--input", source, "--output", output, "--threshold", 0.6, "--per-prompt", 1)
        assert ended.code == 0
        report = json.loads((tmp_path / "kept.report.json").read_text())
        assert (report["rows"], report["kept"]) == (6, 3)
        assert report["dropped"] == {"unscored": 1, "threshold": 1, "per_prompt": 1}
        code, math = report["sources"]
        assert (code["source"], code["rows"], code["scored"], code["kept"]) == ("code", 3, 2, 1)
        assert code["mean"] == pytest.approx((0.55 + 1.2) / 2)
        assert (math["kept"], math["least_kept"]) == (2, pytest.approx(1.0))
        assert "unscored 1" in ended.out
        picture = (tmp_path / "kept.histogram.png").read_bytes()
        assert picture.startswith(PNG)
        width, height = struct.unpack(">II", picture[16:24])
        assert width > 800 and height > 300, "two sources side by side"

    def test_rows_are_those_of_the_input(self, select_data, source, tmp_path):
        output = tmp_path / "kept.parquet"
        kept(select_data, source, output, "--top-k", 3)
        for row in read(output):
            given = ROWS[row["id"]]
            assert {name: row[name] for name in given} == given
            assert row["selection_score"] == pytest.approx(EQ11[row["id"]])

    def test_several_files(self, select_data, tmp_path):
        rows = [{name: value for name, value in row.items() if name != "data_source"} for row in ROWS]
        files = [write_jsonl(tmp_path / "a.jsonl", rows[:3]), write_jsonl(tmp_path / "b.jsonl", rows[3:])]
        output = tmp_path / "kept.parquet"
        ended = select_data("--input", *files, "--output", output, "--quota", "b=1", "--quota", 0)
        assert ended.code == 0, ended.err
        assert [row["id"] for row in read(output)] == [5], "the file's name is the source"

    def test_scores_by_itself(self, select_data, score, prm, tmp_path):
        raw = [{"question": f"{n}?", "answer": [f"one {n}", "two"], "id": n} for n in range(9)]
        source = write_jsonl(tmp_path / "raw.jsonl", raw)
        model = ("--prm", prm, "--device", "cpu", "--self-test", "off")
        output = tmp_path / "kept.parquet"
        ended = select_data("--input", source, "--output", output, "--top-k", 3, *model)
        assert ended.code == 0, ended.err
        assert score("--input", source, "--output", tmp_path / "s.jsonl", *model).code == 0
        best = sorted(read_jsonl(tmp_path / "s.jsonl"), key=lambda row: -row["prm_score"])[:3]
        rows = read(output)
        assert sorted(row["id"] for row in best) == [row["id"] for row in rows]
        assert [row["response"] for row in rows] == [f"one {row['id']}\n\ntwo" for row in rows]
        assert [row["prompt"] for row in rows] == [f"{row['id']}?" for row in rows]

    def test_scores_lists_of_responses_by_itself(self, select_data, prm, tmp_path):
        source = write_jsonl(tmp_path / "raw.jsonl", [{"prompt": f"{n}", "responses": ["a", "b\n\nc"]} for n in "xyz"])
        output = tmp_path / "kept.parquet"
        model = ("--prm", prm, "--device", "cpu", "--self-test", "off")
        ended = select_data("--input", source, "--output", output, "--per-prompt", 1, *model)
        assert ended.code == 0, ended.err
        assert [row["prompt"] for row in read(output)] == ["x", "y", "z"]


class TestForTraining:
    @pytest.mark.parametrize("is_chat", [False, True])
    def test_the_sft_trainers_data_set_reads_it(self, select_data, tmp_path, is_chat):
        rows = [
            row | {"prompt": [{"role": "user", "content": row["prompt"]}] if is_chat else row["prompt"]} for row in ROWS
        ]
        output = tmp_path / "kept.parquet"
        kept(select_data, write_jsonl(tmp_path / "in.jsonl", rows), output, "--top-k", 3)
        tokenizer = byte_tokenizer()
        dataset = SFTDataset(SFTDataConfig(train_files=(str(output),), max_length=200), tokenizer, "train")
        assert len(dataset) == 3
        texts = [tokenizer.decode(dataset[n]["response_token_ids"][:-1]) for n in range(3)]
        assert texts == [ROWS[n]["response"] for n in (1, 2, 5)]

    @pytest.mark.parametrize(
        ("steps", "text"),
        [(["one", "two"], "one\n\ntwo"), (["one\n\n", "two"], "one\n\ntwo"), (["a\n", "b"], "a\nb")],
    )
    def test_steps_become_a_text(self, select_data, tmp_path, steps, text):
        source = write_jsonl(tmp_path / "in.jsonl", [ROWS[0] | {"response": steps}])
        kept(select_data, source, tmp_path / "kept.parquet", "--top-k", 1)
        assert read(tmp_path / "kept.parquet")[0]["response"] == text

    def test_columns_that_only_later_rows_have(self, select_data, tmp_path):
        """Flags are empty lists in the first thousand rows, and the parquet file still holds the later ones."""
        rows = [scored(n, str(n), "s", [0.5]) for n in range(1100)]
        rows[-1] |= {"prm_flags": ["one_step"], "note": {"by": "hand"}}
        output = tmp_path / "kept.parquet"
        assert len(kept(select_data, write_jsonl(tmp_path / "in.jsonl", rows), output, "--top-k", 2000)) == 1100
        written = read(output)
        assert (written[0]["prm_flags"], written[0]["note"]) == ([], None)
        assert (written[-1]["prm_flags"], written[-1]["note"]) == (["one_step"], {"by": "hand"})


class TestUserErrors:
    @pytest.mark.parametrize(
        ("more", "message"),
        [
            ((), "nothing limits the selection"),
            (("--top-k", 0), "top_k=0"),
            (("--quota", "math=many"), "--quota='math=many'"),
            (("--threshold", 9), "none of 6 rows is left (dropped by limit: unscored 1, threshold 5)"),
            (("--top-k", 1, "--score-column", "nothing"), "no column 'nothing'"),
            (("--top-k", 1, "--source-column", "nothing"), "no column 'nothing'"),
            (("--top-k", 1, "--prefix", "new_"), "no column 'new_step_scores'"),
        ],
    )
    def test_one_sentence_and_exit_code_2(self, select_data, source, tmp_path, more, message):
        ended = select_data("--input", source, "--output", tmp_path / "kept.parquet", *more)
        assert ended.code == 2
        assert message in ended.err
        assert not (tmp_path / "kept.parquet").exists()

    def test_unscored_rows_without_a_prm(self, select_data, tmp_path):
        source = write_jsonl(tmp_path / "raw.jsonl", [{"prompt": "p", "response": "r"}])
        ended = select_data("--input", source, "--output", tmp_path / "kept.parquet", "--top-k", 1)
        assert ended.code == 2
        assert "Give --prm to score it first" in ended.err

    def test_output_that_is_there(self, select_data, source, tmp_path):
        output = tmp_path / "kept.parquet"
        kept(select_data, source, output, "--top-k", 1)
        ended = select_data("--input", source, "--output", output, "--top-k", 1)
        assert ended.code == 2
        assert "--overwrite" in ended.err

    def test_broken_line_is_counted_as_unscored(self, select_data, tmp_path):
        source = write_jsonl(tmp_path / "in.jsonl", [*ROWS, "{broken"])
        assert kept(select_data, source, tmp_path / "kept.parquet", "--top-k", 1) == [1]
        report = json.loads((tmp_path / "kept.report.json").read_text())
        assert (report["rows"], report["dropped"]["unscored"]) == (7, 2)
