# SPDX-License-Identifier: Apache-2.0
"""Cutting responses and finding step ends: nothing lost, every end a token, against slow references."""

from __future__ import annotations

import json
import re
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.tokenizers import (
    byte_fallback_tokenizer,
    byte_tokenizer,
    char_tokenizer,
    metaspace_tokenizer,
    word_piece_tokenizer,
)
from verl.rewards.prm.steps import SplitRule, count_repeated, find_steps, map_to_tokens, split_text
from verl.utils.tokenizer import decode_with_starts, encode_plain, load_tokenizer

RULE = SplitRule()
BYTES = byte_tokenizer()
FRAGMENTS = [
    "\n\n",
    "\n",
    " ",
    "\r\n",
    "</think>",
    "<think>",
    "a",
    "so x=1.",
    "é",
    "中",
    "🙂",
    "$$x$$",
    "<extra_0>",
    "\t",
]
texts = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=6)), max_size=30).map("".join)
rules = st.builds(
    lambda separator, least, extra: SplitRule(separator, least, least + extra if extra else 0),
    st.sampled_from(["\n\n", "\n", "ки", "##"]),
    st.integers(0, 12),
    st.integers(0, 12),
)


def line_ends(separator: str) -> str:
    """The separator as a pattern, character by character: a line end may be written in two ways."""
    return "".join("(?:\r\n|\n)" if c == "\n" else re.escape(c) for c in separator)


def content(text: str, separator: str = "\n\n") -> str:
    return re.sub(rf"</?think>|{line_ends(separator)}", "", text).strip()


def pieces(text: str, rule: SplitRule = RULE) -> list[str]:
    return [text[a:b] for a, b in split_text(text, rule)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" \n\n\t\n", []),
        ("<think>\n\n</think>\n\n", []),
        ("one", ["one"]),
        ("a\n\nb", ["a\n\n", "b"]),
        ("a\n\n\n\n\nb", ["a\n\n\n\n", "\nb"]),
        ("\n\na\n\nb\n\n", ["\n\na\n\n", "b\n\n"]),
        ("a\n\n  \n\nb", ["a\n\n  \n\n", "b"]),
        ("a\r\n\r\nb", ["a\r\n\r\n", "b"]),
        ("a\n\r\n\r\n\nb", ["a\n\r\n\r\n\n", "b"]),
        ("a\r\nb", ["a\r\nb"]),
        ("a\r\rb", ["a\r\rb"]),
        ("<think>\nx\n</think>\n\nAnswer", ["<think>\nx\n</think>\n\n", "Answer"]),
        ("x</think>Answer", ["x</think>", "Answer"]),
        ("x\n\n</think>\n\nAnswer", ["x\n\n</think>\n\n", "Answer"]),
        ("<think>\n\n</think>\n\nAnswer", ["<think>\n\n</think>\n\nAnswer"]),
        ("a</think>b</think>c", ["a</think>", "b</think>", "c"]),
        ("a\n\n</think>", ["a\n\n</think>"]),
    ],
)
def test_examples(text, expected):
    assert pieces(text) == expected


def test_small_pieces_join_forward_and_the_last_of_a_section_backward():
    rule = SplitRule(min_step_chars=4)
    assert pieces("1.\n\nlong step\n\nab\n\ncdef\n\nx", rule) == ["1.\n\nlong step\n\n", "ab\n\ncdef\n\nx"]
    assert pieces("long\n\nab</think>ok\n\nfine by me", rule) == ["long\n\nab</think>", "ok\n\nfine by me"]
    assert pieces("ab</think>cd", rule) == ["ab</think>", "cd"], "never over a think border"


def test_long_pieces_are_cut_at_lines_then_spaces_then_anywhere():
    assert pieces("aaaa\nbbbb\ncccc", SplitRule(max_step_chars=7)) == ["aaaa\n", "bbbb\n", "cccc"]
    assert pieces("aaaa bbbb cccc", SplitRule(max_step_chars=7)) == ["aaaa ", "bbbb ", "cccc"]
    assert pieces("abcdefghij", SplitRule(max_step_chars=4)) == ["abcd", "efgh", "ij"]
    assert pieces("abcd" + " " * 20 + "\n\nx", SplitRule(max_step_chars=4)) == ["abcd" + " " * 20 + "\n\n", "x"]


@pytest.mark.parametrize("bad", [{"separator": ""}, {"min_step_chars": 5, "max_step_chars": 4}])
def test_impossible_rules_are_refused(bad):
    with pytest.raises(ValueError, match="separator|max_step_chars"):
        SplitRule(**bad)


@given(texts, rules)
def test_nothing_is_lost_and_no_piece_is_blank(text, rule):
    cut = pieces(text, rule)
    if not content(text, rule.separator):
        assert cut == []
        return
    assert "".join(cut) == text
    assert all(piece.strip() for piece in cut)


@given(texts, st.sampled_from(["\n\n", "\n", "ки"]))
def test_without_limits_pieces_match_a_plain_split(text, separator):
    """Contents, in order, are those of cutting at every separator and every `</think>` and leaving out blank parts."""
    parts = re.split(rf"(?<=</think>)|{line_ends(separator)}", text)
    expected = [p for p in parts if re.sub("</?think>", "", p).strip()]
    cut = pieces(text, SplitRule(separator))
    has_content = [p for p in cut if content(p, separator)]
    assert len(has_content) == len(expected)
    for piece, part in zip(has_content, expected, strict=True):
        assert part.strip() in piece


@given(texts, st.integers(1, 12))
def test_pieces_keep_to_the_maximum(text, most):
    assert all(len(p.strip()) <= most for p in pieces(text, SplitRule(max_step_chars=most)))


@given(texts)
def test_think_end_is_a_border_whenever_both_sides_have_content(text):
    borders = {end for _, end in split_text(text, SplitRule(min_step_chars=50))}
    for match in re.finditer(r"</think>\s*", text):
        sides = (text[: match.start()], text[match.end() :])
        first_side = re.split("</think>", sides[0])[-1]
        if all(re.sub(r"</?think>", "", s).strip() for s in (first_side, sides[1])) and not sides[1].startswith("</"):
            assert match.end() in borders


def slow_ends(spans, starts, num_chars):
    """Last token of each span by looking at every token; spans without one are left out."""
    ends = []
    for begin, end in spans:
        mine = [t for t, s in enumerate(starts) if begin <= s < end and s < num_chars]
        ends += [max(mine)] if mine else []
    return ends


@given(texts, rules, st.data())
def test_ends_are_each_steps_last_token(text, rule, draw):
    """Random cuts of the text into tokens, with tokens that have no text in between."""
    cuts = sorted(draw.draw(st.sets(st.integers(1, max(len(text) - 1, 1)), max_size=len(text))))
    starts = [0, *cuts] if text else []
    for place in draw.draw(st.lists(st.integers(0, len(starts)), max_size=3)):
        starts.insert(place, len(text))
    spans = split_text(text, rule)
    steps = find_steps(text, np.array(starts, dtype=np.int64), rule)
    inside = [s for s in starts if s < len(text)]
    assert steps.ends.tolist() == (slow_ends(spans, starts, len(text)) if inside else [])
    assert len(steps) == len(steps.ends)
    assert np.all(np.diff(steps.ends) > 0)
    assert all(starts[end] < len(text) for end in steps.ends)
    assert "".join(steps.pieces(text)) == (text if content(text, rule.separator) else "")
    if len(steps):
        for (begin, end), token in zip(steps.spans, steps.ends, strict=True):
            assert begin <= starts[token] < end


def test_a_piece_without_a_token_joins_the_one_before():
    steps = map_to_tokens(((0, 3), (3, 4), (4, 6)), np.array([0, 2, 5, 6]), 6)
    assert steps.spans == ((0, 4), (4, 6))
    assert steps.ends.tolist() == [1, 2]


def test_tokens_over_a_border_belong_to_the_step_they_begin_in():
    steps = find_steps("a.\n\nbc", np.array([0, 1, 5, 6]), RULE)  # tokens: "a", ".\n\nb", "c", EOS
    assert steps.ends.tolist() == [1, 2]


@given(texts)
@settings(deadline=None)
def test_byte_tokens_of_any_text(text):
    text = text.replace("<extra_0>", "")
    ids = [*encode_plain(BYTES, [text])[0], BYTES.eos_token_id]
    decoded, starts = decode_with_starts(BYTES, ids)
    steps = find_steps(decoded, starts, RULE)
    assert decoded == text
    assert len(steps) == len(split_text(text, RULE)), "each byte has a token, so no piece is left without"
    assert len(ids) - 1 not in steps.ends, "EOS has no text and belongs to no step"


@pytest.fixture(scope="module")
def qwen(shared_data):
    return load_tokenizer(str(shared_data / "qwen2.5-tokenizer"))


def check_steps_of_tokens(tokenizer, ids: list[int], rule: SplitRule) -> None:
    """What must hold for the reasoning steps of any tokens of any tokenizer."""
    text, starts = decode_with_starts(tokenizer, ids)
    steps = find_steps(text, starts, rule)
    assert "".join(steps.pieces(text)) == (text if content(text, rule.separator) else ""), "nothing is lost"
    assert np.all(np.diff(steps.ends) > 0)
    owned = 0
    for (begin, end), last in zip(steps.spans, steps.ends, strict=True):
        assert 0 <= last < len(ids) and starts[last] < len(text), "every end is a response token"
        assert begin <= starts[last] < end, "that begins in its step"
        owned += sum(begin <= start < end for start in starts)
        following = [start for start in starts[last + 1 :] if start < len(text)]
        assert all(start >= end for start in following), "and no later token does"
    assert owned == (sum(starts < len(text)) if len(steps) else 0), "every token with text lies in one step"


HARD = [
    "👩‍👩‍👧‍👦",
    "🇩🇪",
    "e\u0301\u0323",
    "日本語の推論",
    "한국어",
    "ﷺ",
    "\u202eabc\u202c",
    "\u00a0",
    "\u2028",
    "\x0b",
    r"$$\frac{a}{b}\n\n+c$$",
    "\\begin{align}\nx&=1\\\\\n\ny&=2\n\\end{align}",
    r"\boxed{\text{x}}",
    "1. ",
    "### Step 2\n",
]
hard_texts = st.lists(st.sampled_from([*FRAGMENTS, *HARD]), max_size=25).map("".join)
hard_rules = st.sampled_from(
    [RULE, SplitRule("\n"), SplitRule(min_step_chars=8), SplitRule(max_step_chars=6), SplitRule("\n", 3, 9)]
)


@given(text=hard_texts, rule=hard_rules)
@settings(deadline=None, max_examples=200)
def test_qwen_tokens_of_any_text(qwen, text, rule):
    ids = [*encode_plain(qwen, [text])[0], qwen.eos_token_id]
    assert decode_with_starts(qwen, ids)[0] == unicodedata.normalize("NFC", text)
    check_steps_of_tokens(qwen, ids, rule)


@given(ids=st.lists(st.integers(0, 151_700), max_size=40), rule=hard_rules)
@settings(deadline=None, max_examples=60)
def test_qwen_tokens_in_any_order(qwen, ids, rule):
    """What a policy samples need not be what its tokenizer would write: characters cut anywhere, specials inside."""
    check_steps_of_tokens(qwen, ids, rule)


LAYOUTS = {
    "byte-level BPE": byte_tokenizer((("Ċ", "Ċ"), ("a", "s"))),
    "byte fallback": byte_fallback_tokenizer(),
    "metaspace": metaspace_tokenizer(),
    "word pieces": word_piece_tokenizer(),
    "characters": char_tokenizer("abcdefghijklmnopqrstuvwxyz \n=.1$<>/é中"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@given(text=hard_texts, rule=hard_rules)
@settings(deadline=None, max_examples=60)
def test_any_layout_of_tokenizer_on_any_text(layout, text, rule):
    tokenizer = LAYOUTS[layout]
    check_steps_of_tokens(tokenizer, [*encode_plain(tokenizer, [text])[0], tokenizer.eos_token_id], rule)


@pytest.mark.parametrize("layout", LAYOUTS)
@given(data=st.data(), rule=hard_rules)
@settings(deadline=None, max_examples=60)
def test_any_layout_of_tokenizer_on_any_tokens(layout, data, rule):
    tokenizer = LAYOUTS[layout]
    check_steps_of_tokens(tokenizer, data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=30)), rule)


@pytest.mark.parametrize("layout", ["byte-level BPE", "byte fallback", "metaspace", "characters"])
def test_layouts_that_keep_blank_lines_give_the_same_steps(layout):
    tokenizer = LAYOUTS[layout]
    text = "so x=1.\n\nan answer\n\n\nis é中</think>so 1"
    ids = encode_plain(tokenizer, [text])[0]
    decoded, starts = decode_with_starts(tokenizer, ids)
    assert decoded == text
    assert find_steps(decoded, starts, RULE).pieces(text) == (
        "so x=1.\n\n",
        "an answer\n\n",
        "\nis é中</think>",
        "so 1",
    )


def test_qwen_tokens_of_real_responses(qwen, shared_data):
    rows = [json.loads(line) for line in (shared_data / "math/math_responses_50x8.jsonl").read_text().splitlines()]
    counts = []
    for response in (r for row in rows for r in row["code"]):
        ids = [*encode_plain(qwen, [response])[0], qwen.eos_token_id]
        decoded, starts = decode_with_starts(qwen, ids)
        steps = find_steps(decoded, starts, RULE)
        assert "".join(steps.pieces(decoded)) == unicodedata.normalize("NFC", response)
        assert steps.ends.tolist() == slow_ends(split_text(decoded, RULE), starts.tolist(), len(decoded))
        assert steps.ends[-1] == len(ids) - 2
        check_steps_of_tokens(qwen, ids, SplitRule("\n", 10, 80))
        counts.append(len(steps))
    assert 3 < np.mean(counts) < 20


@pytest.mark.parametrize(
    ("steps", "repeated"),
    [
        ((), 0),
        (("a", "b"), 0),
        (("so x = 1\n\n", "So  x =\n1"), 1),
        (("Step 1: so", "step 2. so", "### Step 3) **so", "4. so", "so"), 4),
        (("1.5 is it", "2.5 is it"), 0),
        (("x1", "x2"), 0),
        ((" ", "\n", "a"), 0),
        (("1.", "2."), 0),
        (("a", "b", "a", "b", "a"), 3),
    ],
)
def test_repeated_steps_say_the_same_again(steps, repeated):
    assert count_repeated(steps) == repeated
