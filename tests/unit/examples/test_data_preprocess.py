# SPDX-License-Identifier: Apache-2.0
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from verl.utils.errors import UserError

SCRIPTS = Path(__file__).resolve().parents[3] / "examples" / "data_preprocess"


@pytest.fixture
def dapo(monkeypatch):
    """The DAPO script as a function of its command line."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    module = importlib.import_module("dapo_multiturn_w_tool")
    return lambda *arguments: module.main(module.build_parser().parse_args([str(a) for a in arguments]))


def row(text, truth="1", **changes):
    base = {
        "data_source": "math_dapo",
        "prompt": [{"role": "user", "content": text}],
        "ability": "MATH",
        "reward_model": {"ground_truth": truth, "style": "rule-lighteval/MATH_v2"},
        "extra_info": {"index": text},
    }
    return {**base, **changes}


def write(path, rows):
    path.write_text("".join(json.dumps(values) + "\n" for values in rows), encoding="utf-8")
    return path


def read(path):
    return pyarrow.parquet.read_table(path).to_pylist()


def test_the_published_schema_of_real_rows(dapo, shared_data, tmp_path, capsys):
    source = shared_data / "math" / "dapo_math_sample.jsonl"
    dapo("--local_dataset_path", source, "--local_dir", tmp_path, "--test_size", 10)
    train, test = read(tmp_path / "train.parquet"), read(tmp_path / "test.parquet")
    assert (len(train), len(test)) == (100, 10)
    originals = {json.loads(line)["extra_info"]["index"]: json.loads(line) for line in source.read_text().splitlines()}
    for split, rows in (("train", train), ("test", test)):
        for values in rows:
            original = originals.pop(values["extra_info"]["index"])
            truth = original["reward_model"]["ground_truth"]
            assert values == {
                **original,
                "extra_info": {
                    "index": original["extra_info"]["index"],
                    "need_tools_kwargs": True,
                    "tools_kwargs": {"code_interpreter": {"create_kwargs": {"ground_truth": truth}}},
                    "split": split,
                },
            }
    assert originals == {}
    assert "rows read                          110" in capsys.readouterr().out


def test_repeats_are_dropped_and_prompts_with_two_truths_are_dropped_whole(dapo, tmp_path, capsys):
    rows = [row("a"), row("b"), row("a"), row(" a "), row("c", "1"), row("c", "2"), row("d")] * 3
    source = write(tmp_path / "in.jsonl", rows)
    dapo("--local_dataset_path", source, "--local_dir", tmp_path / "out", "--test_size", 1)
    kept = read(tmp_path / "out" / "train.parquet") + read(tmp_path / "out" / "test.parquet")
    assert sorted(values["prompt"][0]["content"] for values in kept) == ["a", "b", "d"]
    printed = capsys.readouterr().out.split("\n")
    assert [line.split()[-1] for line in printed[:3]] == ["21", "17", "1"]


def test_the_seed_decides_the_split_and_nothing_else(dapo, tmp_path):
    source = write(tmp_path / "in.jsonl", [row(f"p{i}") for i in range(50)])

    def test_rows(name, seed):
        dapo("--local_dataset_path", source, "--local_dir", tmp_path / name, "--test_size", 0.2, "--seed", seed)
        return [values["extra_info"]["index"] for values in read(tmp_path / name / "test.parquet")]

    assert test_rows("a", 1) == test_rows("b", 1) != test_rows("c", 2)
    assert len(test_rows("d", 3)) == 10
    train = [values["extra_info"]["index"] for values in read(tmp_path / "a" / "train.parquet")]
    assert set(train) | set(test_rows("e", 1)) == {f"p{i}" for i in range(50)}


def test_a_folder_of_parquet_files_and_a_limit(dapo, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("b", "a"):
        table = pyarrow.Table.from_pylist([row(f"{name}{i}") for i in range(4)])
        pyarrow.parquet.write_table(table, folder / f"{name}.parquet")
    dapo("--local_dataset_path", folder, "--local_dir", tmp_path, "--test_size", 1, "--limit", 5)
    kept = read(tmp_path / "train.parquet") + read(tmp_path / "test.parquet")
    assert {values["extra_info"]["index"] for values in kept} == {"a0", "a1", "a2", "a3", "b0"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": []}, "'prompt' must be a list"),
        ({"prompt": [{"role": "user", "content": " "}]}, "'content'"),
        ({"prompt": "text"}, "'prompt' must be a list"),
        ({"reward_model": {}}, "'reward_model.ground_truth'"),
        ({"reward_model": None}, "'reward_model' must be a mapping"),
        ({"reward_model": {"ground_truth": 3}}, "'reward_model.ground_truth'"),
        ({"data_source": ""}, "'data_source'"),
        ({"extra_info": [1]}, "'extra_info'"),
    ],
)
def test_bad_rows_are_named_by_line_and_nothing_is_written(dapo, tmp_path, changes, message):
    source = write(tmp_path / "in.jsonl", [row("a"), row("b", **changes), row("c")])
    with pytest.raises(UserError, match=message) as caught:
        dapo("--local_dataset_path", source, "--local_dir", tmp_path / "out")
    assert "1 of 3 rows" in str(caught.value) and "in.jsonl line 2:" in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("test_size", ["0", "3", "1.5", "-1", "nan"])
def test_impossible_test_sizes_are_refused(dapo, tmp_path, test_size):
    source = write(tmp_path / "in.jsonl", [row("a"), row("b"), row("c")])
    with pytest.raises(UserError, match="--test_size"):
        dapo("--local_dataset_path", source, "--local_dir", tmp_path / "out", f"--test_size={test_size}")


@pytest.mark.parametrize(
    ("script", "file", "count", "data_source"),
    [
        ("gsm8k", "gsm8k_400.jsonl", 400, "openai/gsm8k"),
        ("math500", "math500_first250.jsonl", 250, "HuggingFaceH4/MATH-500"),
        ("aime24", "aime24.jsonl", 30, "HuggingFaceH4/aime_2024"),
    ],
)
def test_benchmarks_become_test_files_that_the_data_set_reads(shared_data, tmp_path, script, file, count, data_source):
    source = shared_data / "math" / file
    command = [sys.executable, SCRIPTS / f"{script}.py", "--local_dataset_path", source, "--local_dir", tmp_path]
    subprocess.run(command, check=True, timeout=120, capture_output=True)
    rows = read(tmp_path / "test.parquet")
    assert len(rows) == count and {values["data_source"] for values in rows} == {data_source}
    assert all(values["reward_model"]["ground_truth"] for values in rows)
    assert not (tmp_path / "train.parquet").exists()


def test_mistakes_on_the_command_line_end_with_code_2_and_no_traceback(tmp_path):
    command = [sys.executable, SCRIPTS / "dapo_multiturn_w_tool.py", "--local_dataset_path", tmp_path / "none.jsonl"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert "none.jsonl" in done.stderr and "does not exist" in done.stderr and "Traceback" not in done.stderr
