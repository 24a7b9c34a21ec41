# SPDX-License-Identifier: Apache-2.0
"""Every token's place in the decoded text, against a byte-by-byte reference."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.tokenizers import SPECIALS, byte_fallback_tokenizer, byte_tokenizer, char_tokenizer
from verl.utils.errors import UserError
from verl.utils.tokenizer import backend_of, decode_with_starts, encode_plain, load_tokenizer

BYTES = byte_tokenizer()
FALLBACK = byte_fallback_tokenizer()
BYTE_IDS = {BYTES.backend_tokenizer.id_to_token(i): i for i in range(256)}


def ids_of_bytes(data: bytes) -> list[int]:
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = [b for b in range(256) if b not in plain]
    return [BYTE_IDS[chr(b) if b in plain else chr(256 + moved.index(b))] for b in data]


def char_of_each_byte(data: bytes) -> list[int]:
    """Character that each byte of `data` falls into: cut the text up by trying, the slow way."""
    places: list[int] = []
    begin = 0
    char = 0
    while begin < len(data):
        # The longest run of at most 4 bytes that is exactly one character (or one replacement character).
        sizes = [n for n in range(1, 5) if len(data[begin : begin + n].decode("utf-8", "replace")) == 1]
        size = max(min(n, len(data) - begin) for n in sizes)
        places += [char] * size
        begin += size
        char += 1
    return places


@given(st.binary(max_size=40))
def test_single_byte_tokens_begin_at_their_bytes_character(data):
    text, starts = decode_with_starts(BYTES, ids_of_bytes(data))
    assert text == data.decode("utf-8", "replace")
    assert starts.tolist() == char_of_each_byte(data)


@given(st.text(max_size=40))
def test_characters_split_over_tokens_share_their_place(text):
    decoded, starts = decode_with_starts(BYTES, ids_of_bytes(text.encode()))
    assert decoded == text
    assert starts.tolist() == [place for place, c in enumerate(text) for _ in c.encode()]


def test_special_and_unknown_tokens_have_no_place():
    eos = BYTES.convert_tokens_to_ids("<|im_end|>")
    text, starts = decode_with_starts(BYTES, [*ids_of_bytes(b"ab"), eos, *ids_of_bytes(b"c"), 10**6, eos])
    assert text == "abc"
    assert starts.tolist() == [0, 1, 3, 2, 3, 3]
    assert starts.dtype == np.int64


def test_unfinished_character_at_the_end_is_one_replacement_character():
    text, starts = decode_with_starts(BYTES, ids_of_bytes("a中".encode()[:-1]))
    assert text == "a�"
    assert starts.tolist() == [0, 1, 1]


def test_no_tokens():
    text, starts = decode_with_starts(BYTES, [])
    assert text == "" and starts.shape == (0,)


@given(st.lists(st.integers(0, len(FALLBACK) - 1), max_size=24))
def test_other_layouts_decode_to_the_same_text_with_rising_places(ids):
    text, starts = decode_with_starts(FALLBACK, ids)
    assert text == FALLBACK.backend_tokenizer.decode(ids, skip_special_tokens=True)
    special = np.isin(ids, FALLBACK.convert_tokens_to_ids(list(SPECIALS)))
    assert np.all(np.diff(starts[~special]) >= 0)
    assert np.all(starts[special] == len(text))


def test_character_tokenizer():
    tokenizer = char_tokenizer("abc \n")
    ids = encode_plain(tokenizer, ["ab\n\nc"])[0]
    text, starts = decode_with_starts(tokenizer, [*ids, tokenizer.eos_token_id])
    assert text == "ab\n\nc"
    assert starts.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.fixture(scope="module")
def qwen(shared_data):
    return load_tokenizer(str(shared_data / "qwen2.5-tokenizer"))


@settings(deadline=None, max_examples=60)
@given(ids=st.lists(st.integers(0, 151_700), max_size=60))
def test_qwen_decodes_any_tokens_as_its_own_decoder(qwen, ids):
    text, starts = decode_with_starts(qwen, ids)
    assert text == qwen.backend_tokenizer.decode(ids, skip_special_tokens=True)
    inside = starts[starts < len(text)]
    assert np.all(np.diff(inside) >= 0)


def test_qwen_places_agree_with_its_own_offsets_on_real_responses(qwen, shared_data):
    rows = [json.loads(line) for line in (shared_data / "math/math_responses_50x8.jsonl").read_text().splitlines()]
    for row in rows[:20]:
        for response in row["code"]:
            encoding = backend_of(qwen).encode(response, add_special_tokens=False)
            text, starts = decode_with_starts(qwen, encoding.ids)
            assert text == response
            assert starts.tolist() == [begin for begin, _ in encoding.offsets]


def test_missing_and_empty_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match="reward_model.model.path.*existing folder"):
        load_tokenizer(str(tmp_path / "nothing"), key="reward_model.model.path")
    with pytest.raises(UserError, match="must hold a tokenizer"):
        load_tokenizer(str(tmp_path))


def test_a_saved_tokenizer_is_loaded_again(tmp_path):
    BYTES.save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path)).encode("hé", add_special_tokens=False) == BYTES.encode(
        "hé", add_special_tokens=False
    )


def test_a_tokenizer_of_its_own_beside_a_qwen2_config_is_kept_as_it_is(tmp_path: Path) -> None:
    built = char_tokenizer("0123456789+= \nAnswer:")
    built.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    text = "1 + 2 = 3\n\nAnswer: 3"
    loaded = load_tokenizer(str(tmp_path))
    assert loaded(text).input_ids == built(text).input_ids
    assert decode_with_starts(loaded, built(text).input_ids)[0] == text
