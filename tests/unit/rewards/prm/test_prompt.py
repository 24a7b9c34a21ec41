# SPDX-License-Identifier: Apache-2.0
"""Text shown to a PRM."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.tokenizers import SPECIALS, byte_tokenizer
from verl.rewards.prm.prompt import Escaper, frame_chat, problem_of, strip_step
from verl.utils.errors import UserError

TOKENIZER = byte_tokenizer()
ESCAPE = Escaper(TOKENIZER, "<extra_0>")


def test_problem_is_the_last_thing_the_user_said():
    chat = [{"role": "system", "content": "S"}, {"role": "user", "content": "A"}, {"role": "user", "content": "B"}]
    assert problem_of(chat) == "B"
    assert problem_of([{"role": "user", "content": [{"type": "text", "text": "A"}, {"text": "B"}]}]) == "AB"
    assert problem_of([{"role": "tool", "content": "T"}]) == "T"
    assert problem_of([]) == ""


@pytest.mark.parametrize(
    ("piece", "separator", "shown"),
    [
        ("a\n\n", "\n\n", "a"),
        ("\n a \n\n\n", "\n\n", "a"),
        ("a ки\n", "ки", "a"),
        ("## a ## ##", "##", "a"),
        ("##", "##", ""),
    ],
)
def test_strip_step(piece, separator, shown):
    assert strip_step(piece, separator) == shown


@given(st.lists(st.sampled_from([*SPECIALS, "<ext", "ra_0>", "<|im", "_end|>", "x", " "]), max_size=12).map("".join))
def test_escaped_text_holds_no_special_token(text):
    escaped = ESCAPE(text)
    assert not any(mark in escaped for mark in SPECIALS)
    ids = TOKENIZER.encode(escaped, add_special_tokens=False)
    assert not set(ids) & set(TOKENIZER.convert_tokens_to_ids(list(SPECIALS)))
    assert escaped.replace(" ", "") == text.replace(" ", ""), "nothing but spaces is added"
    if not any(mark in text for mark in SPECIALS):
        assert escaped == text


def test_frame_holds_the_chat_without_the_assistants_words():
    frame = frame_chat(TOKENIZER, "1+1?", "be brief", "<extra_0>")
    before, after = TOKENIZER.decode(frame.before), TOKENIZER.decode(frame.after)
    assert before == "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n"
    assert after == "<|im_end|>\n"


def test_a_template_without_the_assistant_is_refused():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    with pytest.raises(UserError, match="leaves out the assistant"):
        frame_chat(tokenizer, "q", None, "<extra_0>")
