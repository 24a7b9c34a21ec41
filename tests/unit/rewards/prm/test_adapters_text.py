# SPDX-License-Identifier: Apache-2.0
"""Plain-text families: every step has its position whatever the text and the length; real tokens of real responses."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from tests.helpers.prm_families import NEWLINE_MERGES, llama3_tokenizer, sentencepiece_tokenizer
from tests.helpers.tokenizers import byte_tokenizer
from verl.rewards.prm.adapters import get_prm_adapter
from verl.rewards.prm.inputs import AdapterSettings
from verl.rewards.prm.steps import SplitRule, split_text
from verl.rewards.prm.types import ScoreRequest

TOKENIZERS = {
    "reasonflux_prm_1_5b": byte_tokenizer(NEWLINE_MERGES),
    "skywork_prm": byte_tokenizer(NEWLINE_MERGES),
    "pure_prm": byte_tokenizer(NEWLINE_MERGES),
    "math_shepherd": sentencepiece_tokenizer(),
    "rlhflow_prm": llama3_tokenizer(),
    "implicit_prm": byte_tokenizer(NEWLINE_MERGES),
}
pieces = st.lists(
    st.lists(
        st.sampled_from(["ки", " ки ", "+", "\n", "\n\n", " ", "é中", "<|im_end|>", "</s>", "Step 3: ", "$x$"]),
        min_size=1,
        max_size=8,
    ).map("".join),
    min_size=1,
    max_size=8,
)


@pytest.mark.parametrize("adapter", TOKENIZERS)
@given(steps=pieces, limit=st.integers(90, 260), overlong=st.sampled_from(["window", "extend"]))
def test_each_step_is_scored_once_and_in_order(adapter, steps, limit, overlong):
    settings = AdapterSettings(limit, 10_000 if overlong == "extend" else limit, overlong=overlong)
    made = get_prm_adapter(adapter)(TOKENIZERS[adapter], settings)
    plan = made.plan(ScoreRequest("r", "<|im_end|> 1+1?", tuple(steps)))
    scored = []
    for item in plan.inputs:
        kept = len(item.score_positions) - plan.differences
        scored += range(item.first_step, item.first_step + kept)
        assert all(0 <= place < len(item.token_ids) for place in item.score_positions)
        assert (item.score_positions[1:] >= item.score_positions[:-1]).all()
        if overlong == "window":
            assert len(item.token_ids) <= limit
    assert scored == list(range(len(steps)))


@pytest.mark.parametrize("adapter", ["skywork_prm", "pure_prm"])
def test_line_ends_within_a_step_make_no_scores(adapter):
    tokenizer = TOKENIZERS[adapter]
    made = get_prm_adapter(adapter)(tokenizer, AdapterSettings(1000, 1000))
    (item,) = made.plan(ScoreRequest("r", "Sum?", ("a:\n$x$\n\n.\nb\n\n", "c"))).inputs
    text = "a:\n$x$\n\n.\nb"
    assert tokenizer.decode(item.token_ids).endswith(f"{text}\nc\n")
    end = tokenizer.convert_tokens_to_ids("Ċ")
    assert [item.token_ids[place] for place in item.score_positions] == [end, end]
    assert item.token_ids.count(end) > 2 and len(item.score_positions) == 2


def test_skywork_begins_with_bos_and_ends_the_problem_with_a_line():
    tokenizer = byte_tokenizer()
    tokenizer.bos_token = "<|endoftext|>"
    request = ScoreRequest("r", "Sum?", ("It is 2.",))
    for adapter, text in (("skywork_prm", "<|endoftext|>Sum?\nIt is 2.\n"), ("pure_prm", "Sum?It is 2.\n")):
        (item,) = get_prm_adapter(adapter)(tokenizer, AdapterSettings(1000, 1000)).plan(request).inputs
        assert tokenizer.decode(item.token_ids) == text


def test_math_shepherd_numbers_steps_that_are_not_numbered():
    made = get_prm_adapter("math_shepherd")(TOKENIZERS["math_shepherd"], AdapterSettings(1000, 1000))
    (item,) = made.plan(ScoreRequest("r", "Sum?", ("One.\n\n", "Step 2: two.\n\n", "Three."))).inputs
    text = TOKENIZERS["math_shepherd"].decode(item.token_ids, skip_special_tokens=True)
    assert text == "Sum? Step 1: One. ки\nStep 2: two. ки\nStep 3: Three. ки"


def test_math_shepherd_breaks_up_a_tag_but_no_word():
    made = get_prm_adapter("math_shepherd")(TOKENIZERS["math_shepherd"], AdapterSettings(1000, 1000))
    (item,) = (plan := made.plan(ScoreRequest("r", "?", ("so ки, руки",)))).inputs
    text = TOKENIZERS["math_shepherd"].decode(item.token_ids, skip_special_tokens=True)
    assert text == "? Step 1: so к и, руки ки" and plan.flags == ("escaped",)


def test_a_prefix_ends_with_content_but_the_published_way_takes_the_response_as_it_is():
    tokenizer, request = TOKENIZERS["reasonflux_prm_1_5b"], ScoreRequest("r", "Sum?", ("One.\n\n", "Two.\n"))
    made = get_prm_adapter("reasonflux_prm_1_5b")(tokenizer, AdapterSettings(1000, 1000))
    texts = [tokenizer.decode(item.token_ids) for item in made.plan(request).inputs]
    assert texts == ["Sum?One.", "Sum?One.\n\nTwo."]
    legacy = get_prm_adapter("reasonflux_prm_1_5b")(tokenizer, AdapterSettings(1000, 1000, reads_last_token=True))
    (item,) = legacy.plan(ScoreRequest("r", "Sum?", ("One.\n\nTwo.\n",))).inputs
    assert tokenizer.decode(item.token_ids) == "Sum?One.\n\nTwo.\n"


def test_real_responses_with_the_real_tokenizer(shared_data):
    """On real text the inputs are those of the published code, and no line end is lost or found twice."""
    folder = shared_data / "qwen2.5-tokenizer"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_file(str(folder / "tokenizer.json")), eos_token="<|im_end|>"
    )
    tokenizer.chat_template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    settings = AdapterSettings(100_000, 100_000)
    pure, implicit = (get_prm_adapter(name)(tokenizer, settings) for name in ("pure_prm", "implicit_prm"))
    rows = [json.loads(line) for line in (shared_data / "math/math_responses_50x8.jsonl").read_text().splitlines()]
    for row in rows[:8]:
        response = row["code"][0]
        steps = tuple(response[a:b] for a, b in split_text(response, SplitRule()))
        request = ScoreRequest("r", row["question"], steps)
        (item,) = pure.plan(request).inputs
        published = tokenizer.encode(row["question"])
        places = []
        for step in steps:
            published += [*tokenizer.encode(step.strip()), 198]
            places.append(len(published) - 1)
        assert item.token_ids == published and item.score_positions.tolist() == places
        (item,) = implicit.plan(request).inputs
        chat = [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": response}]
        assert item.token_ids == tokenizer.encode(tokenizer.apply_chat_template(chat, tokenize=False))
        for k, step in enumerate(steps):
            begin, end = item.score_positions[k] + 1, item.score_positions[k + 1] + 1
            assert tokenizer.decode(item.token_ids[begin:end]) == step
