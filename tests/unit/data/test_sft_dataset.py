# SPDX-License-Identifier: Apache-2.0
import json

import pytest

from tests.helpers.tokenizers import byte_tokenizer
from verl.config.sft import SFTDataConfig
from verl.data.sft_dataset import SFTDataset
from verl.utils.errors import UserError

HEAD, TAIL = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


def build(tmp_path, tokenizer, rows, **config):
    path = tmp_path / "sft.jsonl"
    path.write_text("".join(json.dumps(values) + "\n" for values in rows), encoding="utf-8")
    return SFTDataset(SFTDataConfig(train_files=(str(path),), **config), tokenizer, "train")


def test_prompt_and_response_or_messages_give_the_same_tokens(tmp_path, tokenizer):
    messages = [{"role": "user", "content": "1+1"}, {"role": "assistant", "content": "2"}]
    rows = [{"prompt": "1+1", "response": "2"}, {"prompt": messages[:1], "response": "2"}]
    dataset = build(tmp_path, tokenizer, rows)
    chat = build(tmp_path, tokenizer, [{"messages": messages}])
    assert len(dataset) == 2
    for sample in (dataset[0], dataset[1], chat[0]):
        assert tokenizer.decode(sample["prompt_token_ids"]) == f"{HEAD}1+1{TAIL}"
        assert tokenizer.decode(sample["response_token_ids"][:-1]) == "2"
        assert sample["response_token_ids"][-1] == tokenizer.eos_token_id
    assert [sample["index"] for sample in dataset] == [0, 1]


@pytest.mark.parametrize("truncation", ["left", "right", "middle"])
def test_a_long_row_is_cut_as_one_sequence(tmp_path, tokenizer, truncation):
    rows = [{"prompt": "abc", "response": "0123456789" * 3}]
    whole = build(tmp_path, tokenizer, rows)[0]
    prompt, response = whole["prompt_token_ids"], whole["response_token_ids"]
    limit = len(prompt) + len(response) - 4
    dataset = build(tmp_path, tokenizer, rows, max_length=limit, truncation=truncation)
    kept, sequence = dataset[0], prompt + response
    half = limit // 2
    expected = {
        "left": (prompt[4:], response),
        "right": (prompt, response[:-4]),
        "middle": (prompt, (sequence[:half] + sequence[half + 4 :])[len(prompt) :]),
    }[truncation]
    assert (kept["prompt_token_ids"], kept["response_token_ids"]) == expected
    assert dataset.num_truncated == 1


def test_rows_that_do_not_fit_are_refused(tmp_path, tokenizer):
    rows = [{"prompt": "a", "response": "b"}, {"prompt": "a" * 99, "response": "b"}]
    with pytest.raises(UserError, match=r"data\.max_length=60.*line 2 has"):
        build(tmp_path, tokenizer, rows, max_length=60)
    with pytest.raises(UserError, match="line 2.*leaves no response"):
        build(tmp_path, tokenizer, rows, max_length=60, truncation="right")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"prompt": "a"}, "no column 'response'"),
        ({"prompt": "a", "response": 5}, "'response' must be a text"),
        ({"messages": [{"role": "user", "content": "a"}]}, "assistant"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}, "assistant"),
        ({"messages": []}, "'messages' must be"),
    ],
)
def test_bad_rows_are_named_by_line(tmp_path, tokenizer, bad, message):
    with pytest.raises(UserError, match=message) as caught:
        build(tmp_path, tokenizer, [{"prompt": "a", "response": "b"}, bad])
    assert "sft.jsonl line 2" in str(caught.value)


def test_a_tokenizer_without_eos_is_refused(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="EOS"):
        build(tmp_path, tokenizer, [{"prompt": "a", "response": "b"}])
