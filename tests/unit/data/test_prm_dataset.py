# SPDX-License-Identifier: Apache-2.0
import json

import pytest

from verl.config.sft import PRMDataConfig
from verl.data.prm_dataset import PRMDataset, StepEncoding
from verl.utils.errors import UserError


def encode(problem, steps):
    """One token per character, each step closed by token 0, where it is scored."""
    ids, positions = [ord(c) for c in problem], []
    for step in steps:
        ids += [ord(c) for c in step] + [0]
        positions.append(len(ids) - 1)
    return StepEncoding(ids, positions)


def build(tmp_path, rows, **config):
    path = tmp_path / "prm.jsonl"
    path.write_text("".join(json.dumps(values) + "\n" for values in rows), encoding="utf-8")
    return PRMDataset(PRMDataConfig(train_files=(str(path),), **config), encode, "train")


ROW = {"prompt": "1+1+1", "completions": ["1+1=2", "2+1=4"], "labels": [True, False]}


def test_each_step_has_its_position_and_label(tmp_path):
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "1+1+1"}]
    soft = {**ROW, "prompt": chat, "labels": [1, 0.25]}
    dataset = build(tmp_path, [ROW, soft])
    assert [item["labels"] for item in dataset] == [[1.0, 0.0], [1.0, 0.25]]
    for item in dataset:
        assert item["label_positions"] == [10, 16]
        assert [item["input_ids"][place] for place in item["label_positions"]] == [0, 0]
        assert item["input_ids"] == list(encode("1+1+1", ROW["completions"]).input_ids)


def test_a_long_row_keeps_whole_steps_with_their_labels(tmp_path):
    dataset = build(tmp_path, [ROW], max_length=16, truncation="right")
    assert dataset[0]["labels"] == [1.0] and dataset[0]["label_positions"] == [10]
    assert len(dataset[0]["input_ids"]) == 11 and dataset.num_truncated == 1
    with pytest.raises(UserError, match=r"data\.max_length=16.*line 1 has 17 tokens"):
        build(tmp_path, [ROW], max_length=16)
    with pytest.raises(UserError, match="line 1.*first step"):
        build(tmp_path, [ROW], max_length=10, truncation="right")


@pytest.mark.parametrize("truncation", ["left", "middle"])
def test_cuts_that_would_part_labels_from_steps_are_refused(tmp_path, truncation):
    with pytest.raises(UserError, match="only error and right"):
        build(tmp_path, [ROW], truncation=truncation)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": [True]}, "one label for each of the 2 steps, not 1"),
        ({"labels": True}, "not bool"),
        ({"labels": [True, None]}, "not None"),
        ({"labels": [True, 1.5]}, r"not 1\.5"),
        ({"labels": [True, float("nan")]}, "not nan"),
        ({"completions": []}, "'completions'"),
        ({"completions": ["a", " "]}, "none empty"),
        ({"completions": "ab"}, "'completions'"),
        ({"prompt": None}, "'prompt'"),
    ],
)
def test_bad_rows_are_named_by_line(tmp_path, changes, message):
    with pytest.raises(UserError, match=message) as caught:
        build(tmp_path, [ROW, {**ROW, **changes}])
    assert "prm.jsonl line 2" in str(caught.value)
