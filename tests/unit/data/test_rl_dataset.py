# SPDX-License-Identifier: Apache-2.0
import json
import logging
from dataclasses import replace

import pytest

from tests.helpers.tokenizers import byte_tokenizer, qwen_with_step_token
from verl.config.data import DataConfig
from verl.data.rl_dataset import PromptSettings, RLDataset
from verl.utils.errors import UserError


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


def row(text="1+1", **changes):
    base = {
        "data_source": "math_dapo",
        "prompt": [{"role": "user", "content": text}],
        "ability": "MATH",
        "reward_model": {"ground_truth": "2", "style": "rule"},
        "extra_info": {"index": "a"},
    }
    return {**base, **changes}


def write(tmp_path, rows, name="rows.jsonl"):
    path = tmp_path / name
    path.write_text("".join(json.dumps(values) + "\n" for values in rows), encoding="utf-8")
    return PromptSettings(files=(str(path),))


def test_a_row_becomes_a_prompt(tmp_path, tokenizer):
    settings = write(tmp_path, [row(), row("x", reward_model={"ground_truth": 3}, extra_info=None)])
    dataset = RLDataset(settings, tokenizer)
    assert len(dataset) == 2
    first = dataset[0]
    assert tokenizer.decode(first["prompt_token_ids"]) == "<|im_start|>user\n1+1<|im_end|>\n<|im_start|>assistant\n"
    assert first["raw_prompt"] == [{"role": "user", "content": "1+1"}]
    assert (first["data_source"], first["ground_truth"], first["index"]) == ("math_dapo", "2", 0)
    assert first["extra_info"] == {"index": "a"}
    assert (dataset[1]["ground_truth"], dataset[1]["extra_info"], dataset[1]["index"]) == ("3", {}, 1)
    assert dataset.data_sources == {"math_dapo"}


def test_a_plain_text_prompt_is_one_user_message_and_nested_truth_is_json(tmp_path, tokenizer):
    dataset = RLDataset(write(tmp_path, [row(prompt="hi", reward_model={"ground_truth": ["1", "2"]})]), tokenizer)
    assert dataset[0]["raw_prompt"] == [{"role": "user", "content": "hi"}]
    assert dataset[0]["ground_truth"] == '["1", "2"]'


def test_real_rows_and_the_real_tokenizer_agree_with_the_template(shared_data):
    tokenizer = qwen_with_step_token(shared_data / "qwen2.5-tokenizer")
    path = shared_data / "math" / "dapo_math_sample.jsonl"
    dataset = RLDataset(PromptSettings(files=(str(path),), max_prompt_length=1024), tokenizer)
    assert len(dataset) == 110
    for item in dataset:
        expected = tokenizer.apply_chat_template(
            item["raw_prompt"], tokenize=True, add_generation_prompt=True, return_dict=False
        )
        assert item["prompt_token_ids"] == expected
        assert int(item["ground_truth"]) is not None and item["data_source"] == "math_dapo"


LONG = "abcdefghij" * 3


@pytest.mark.parametrize("truncation", ["left", "right", "middle"])
def test_long_prompts_are_cut_and_counted(tmp_path, tokenizer, truncation, caplog):
    settings = write(tmp_path, [row("s"), row(LONG)])
    whole = RLDataset(replace(settings, max_prompt_length=100), tokenizer)[1]["prompt_token_ids"]
    with caplog.at_level(logging.INFO, logger="verl.data.rl_dataset"):
        dataset = RLDataset(replace(settings, max_prompt_length=40, truncation=truncation), tokenizer)
    expected = {"left": whole[-40:], "right": whole[:40], "middle": whole[:20] + whole[-20:]}[truncation]
    assert dataset[1]["prompt_token_ids"] == expected
    assert (dataset.counts.rows, dataset.counts.filtered, dataset.counts.truncated) == (2, 0, 1)
    assert "0 left out and 1 cut" in caplog.text


def test_long_prompts_are_left_out_and_counted(tmp_path, tokenizer):
    settings = replace(write(tmp_path, [row(LONG), row("s")]), max_prompt_length=40, filter_overlong=True)
    dataset = RLDataset(settings, tokenizer)
    assert [item["index"] for item in dataset] == [1]
    assert (dataset.counts.filtered, dataset.counts.kept) == (1, 1)


def test_a_long_prompt_under_error_names_its_line_and_length(tmp_path, tokenizer):
    settings = replace(write(tmp_path, [row("s"), row(LONG)]), max_prompt_length=40)
    with pytest.raises(UserError, match=r"data\.max_prompt_length=40.*rows\.jsonl line 2 has \d\d tokens"):
        RLDataset(settings, tokenizer)


def test_nothing_left_after_filtering_is_refused(tmp_path, tokenizer):
    settings = replace(write(tmp_path, [row(LONG), row()]), max_prompt_length=5, filter_overlong=True)
    with pytest.raises(UserError, match="all 2 rows.*nothing is left"):
        RLDataset(settings, tokenizer)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": []}, "'prompt' must be"),
        ({"prompt": [{"role": "user"}]}, "'prompt' must be"),
        ({"prompt": 5}, "'prompt' must be"),
        ({"data_source": None}, "'data_source' must be a text"),
        ({"reward_model": None}, "'ground_truth'"),
        ({"reward_model": {"style": "rule"}}, "'ground_truth'"),
        ({"reward_model": {"ground_truth": ""}}, "'ground_truth'"),
        ({"extra_info": "x"}, "'extra_info'"),
        ({"extra_info": {"expected_response_tokens": 0}}, "'extra_info.expected_response_tokens' must be a number"),
        ({"extra_info": {"expected_response_tokens": "long"}}, "'extra_info.expected_response_tokens' must be"),
        ({"extra_info": {"expected_response_tokens": True}}, "'extra_info.expected_response_tokens' must be"),
    ],
)
def test_a_bad_row_is_named_by_line(tmp_path, tokenizer, changes, message):
    with pytest.raises(UserError, match=message) as caught:
        RLDataset(write(tmp_path, [row(), row(**changes)]), tokenizer)
    assert "rows.jsonl line 2" in str(caught.value)


def test_a_missing_column_names_file_column_and_those_found(tmp_path, tokenizer):
    settings = write(tmp_path, [{"prompt": "x", "answer": "1"}])
    with pytest.raises(UserError, match=r"rows\.jsonl.*no column 'data_source', 'reward_model'; it has 'prompt', 'ans"):
        RLDataset(settings, tokenizer)


def test_a_tokenizer_without_a_chat_template_is_refused(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(UserError, match="no chat template.*Use an instruct model"):
        RLDataset(write(tmp_path, [row()]), tokenizer)


def test_messages_that_the_template_refuses_are_named(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('no system role') }}"
    with pytest.raises(UserError, match="line 1.*no system role"):
        RLDataset(write(tmp_path, [row()]), tokenizer)


def test_template_arguments_reach_the_template(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ messages[0]['content'] }}{% if shout %}!{% endif %}"
    settings = replace(write(tmp_path, [row("a")]), template_kwargs={"shout": True})
    assert tokenizer.decode(RLDataset(settings, tokenizer)[0]["prompt_token_ids"]) == "a!"


def test_max_samples_draws_by_seed_or_takes_the_first(tmp_path, tokenizer):
    settings = replace(write(tmp_path, [row(str(i)) for i in range(30)]), max_samples=5)

    def indices(seed):
        return [item["index"] for item in RLDataset(replace(settings, sample_seed=seed), tokenizer)]

    assert indices(None) == [0, 1, 2, 3, 4]
    assert indices(1) == indices(1) != indices(2)
    assert len(set(indices(1))) == 5


def test_settings_come_from_the_data_section():
    config = DataConfig(
        train_files=("t",), val_files=("v",), train_max_samples=7, val_max_samples=3, max_prompt_length=9,
        truncation="left", filter_overlong_prompts=True, reward_fn_key="source", prompt_key="q",
    )  # fmt: skip
    training = PromptSettings.for_training(config, seed=4)
    assert (training.files, training.files_key, training.max_samples) == (("t",), "data.train_files", 7)
    assert (training.sample_seed, training.truncation, training.filter_overlong) == (4, "left", True)
    assert (training.data_source_key, training.prompt_key, training.max_prompt_length) == ("source", "q", 9)
    validation = PromptSettings.for_validation(config)
    assert (validation.files, validation.files_key, validation.max_samples) == (("v",), "data.val_files", 3)
    assert validation.sample_seed is None
