# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet
import pytest

from recipe.miniature.data import Sizes, build, write
from recipe.miniature.problems import check_steps
from recipe.miniature.tokenizer import build_tokenizer
from verl.config.sft import PRMDataConfig, SFTDataConfig
from verl.data.prm_dataset import PRMDataset, StepEncoding
from verl.data.rl_dataset import PromptSettings, RLDataset
from verl.data.sft_dataset import SFTDataset
from verl.rewards.scores.registry import get_scorer
from verl.utils.errors import UserError

SMALL = Sizes(train=200, test=100, sft=400, prm=400, prm_test=50)


@pytest.fixture(scope="module")
def rows():
    return build(SMALL, seed=0)


@pytest.fixture(scope="module")
def folder(rows, tmp_path_factory):
    place = tmp_path_factory.mktemp("miniature")
    write(rows, str(place))
    return place


def prompts(rows, name):
    return [row["prompt"] if isinstance(row["prompt"], str) else row["prompt"][0]["content"] for row in rows[name]]


def test_every_file_has_its_size_and_the_seed_decides(rows):
    sizes = {name: value for name, value in vars(SMALL).items() if name != "wrong_steps"}
    assert {name: len(part) for name, part in rows.items()} == sizes
    assert build(SMALL, seed=0) == rows
    assert build(SMALL, seed=1)["test"] != rows["test"]


def test_test_problems_are_in_no_other_file(rows):
    held_out = set(prompts(rows, "test"))
    assert len(held_out) == SMALL.test
    for name in ("train", "sft", "prm", "prm_test"):
        assert held_out.isdisjoint(prompts(rows, name))
    assert set(prompts(rows, "prm_test")).isdisjoint(prompts(rows, "prm"))
    assert len(set(prompts(rows, "train"))) == SMALL.train


def test_demonstrations_are_wrong_as_often_as_asked_and_teach_the_format(rows):
    verdicts = [check_steps(row["prompt"], row["response"]) for row in rows["sft"]]
    assert all(len(steps) == 5 for steps in verdicts)
    first_right = sum(steps[0] for steps in verdicts) / len(verdicts)
    assert 0.73 < first_right < 0.87
    assert all(row["response"].rsplit("\n\n", 1)[1].startswith("Answer: ") for row in rows["sft"])


def test_labels_are_what_check_steps_says_and_hold_every_kind_of_error(rows):
    errors = set()
    for row in rows["prm"]:
        assert len(row["labels"]) == len(row["completions"]) == len(row["errors"])
        assert row["labels"] == check_steps(row["prompt"], "\n\n".join(row["completions"]))
        assert row["labels"][-1] == (set(row["errors"]) == {""})
        errors.update(row["errors"])
    assert errors == {"", "arithmetic", "carry", "operand", "skip", "answer"}
    share = sum(sum(row["labels"]) for row in rows["prm"]) / sum(len(row["labels"]) for row in rows["prm"])
    assert 0.5 < share < 0.8


def test_the_data_sets_of_the_framework_read_the_files(folder, rows):
    tokenizer = build_tokenizer()
    prompts_read = RLDataset(PromptSettings(files=(str(folder / "train.parquet"),), max_prompt_length=16), tokenizer)
    assert len(prompts_read) == SMALL.train and prompts_read.counts.truncated == 0
    first = prompts_read[0]
    assert tokenizer.decode(first["prompt_token_ids"]) == rows["train"][0]["prompt"][0]["content"] + "\n"
    assert get_scorer(first["data_source"])(f"Answer: {first['ground_truth']}", first["ground_truth"], {}).is_correct

    config = SFTDataConfig(train_files=(str(folder / "sft.parquet"),), max_length=96)
    demonstrations = SFTDataset(config, tokenizer, "train")
    assert tokenizer.decode(demonstrations[0]["response_token_ids"]) == rows["sft"][0]["response"] + "<eos>"

    def encode(problem, steps):
        return StepEncoding(list(range(len(steps))), list(range(len(steps))))

    labelled = PRMDataset(PRMDataConfig(train_files=(str(folder / "prm.parquet"),)), encode, "train")
    assert labelled[0]["labels"] == [float(label) for label in rows["prm"][0]["labels"]]


def test_the_command_line_writes_files_and_refuses_nonsense(tmp_path):
    root = Path(__file__).resolve().parents[4]
    command = [sys.executable, "-m", "recipe.miniature.data", "--out", tmp_path]
    sizes = ["--train", "8", "--test", "4", "--sft", "8", "--prm", "8", "--prm_test", "4"]
    subprocess.run([*command, *sizes, "--seed", "3"], check=True, cwd=root, timeout=60, capture_output=True)
    expected = build(Sizes(8, 4, 8, 8, 4), seed=3)
    assert pyarrow.parquet.read_table(tmp_path / "train.parquet").to_pylist() == expected["train"]
    done = subprocess.run([*command, "--test", "0"], cwd=root, timeout=60, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "--test=0" in done.stderr
    with pytest.raises(UserError, match="wrong_steps"):
        Sizes(wrong_steps=1.0)
