# SPDX-License-Identifier: Apache-2.0
"""The Qwen PRM family: one score position per step, the published text, literal markup, long inputs, legacy reading."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.tokenizers import SPECIALS, byte_tokenizer, qwen_with_step_token
from verl.rewards.prm.adapters import (
    QWEN_MATH_SYSTEM,
    AdapterSettings,
    QwenPRMAdapter,
    get_prm_adapter,
    register_prm_adapter,
    resolve_adapter_name,
)
from verl.rewards.prm.steps import SplitRule, split_text
from verl.rewards.prm.types import PRMInputError, ScoreRequest
from verl.utils.errors import UserError

TOKENIZER = byte_tokenizer()
STEP_ID = TOKENIZER.convert_tokens_to_ids("<extra_0>")


def adapter(limit: int = 10_000, **changes) -> QwenPRMAdapter:
    return QwenPRMAdapter(TOKENIZER, AdapterSettings(**({"context_tokens": limit, "max_tokens": limit} | changes)))


def plan(steps, limit: int = 10_000, problem: str = "1+1?", **changes):
    return adapter(limit, **changes).plan(ScoreRequest("r", problem, tuple(steps)))


def test_input_is_the_published_chat():
    (item,) = plan(["First.\n\n", "Second."]).inputs
    assert TOKENIZER.decode(item.token_ids) == (
        "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\nFirst.<extra_0>Second.<extra_0><|im_end|>\n"
    )
    assert [item.token_ids[p] for p in item.score_positions] == [STEP_ID, STEP_ID]


def test_system_message_is_the_adapters():
    made = get_prm_adapter("qwen_math_prm")(TOKENIZER, AdapterSettings(4096, 4096))
    (item,) = made.plan(ScoreRequest("r", "1+1?", ("2",))).inputs
    assert TOKENIZER.decode(item.token_ids).startswith(f"<|im_start|>system\n{QWEN_MATH_SYSTEM}<|im_end|>\n")


steps_with_markup = st.lists(
    st.lists(st.sampled_from([*SPECIALS, "step", "\n", "\n\n", " ", "<extra", "é"]), min_size=1, max_size=6).map(
        "".join
    ),
    min_size=1,
    max_size=8,
)


@settings(deadline=None)
@given(steps_with_markup, st.integers(40, 200), st.sampled_from(["window", "extend"]))
def test_every_step_has_one_position_whatever_the_text_holds(steps, limit, overlong):
    made = plan(
        steps, limit, problem="<extra_0>?", overlong=overlong, max_tokens=10_000 if overlong == "extend" else limit
    )
    scored = [k for item in made.inputs for k in range(item.first_step, item.first_step + len(item.score_positions))]
    assert scored == list(range(len(steps)))
    assert "escaped" in made.flags
    for item in made.inputs:
        positions = np.flatnonzero(np.array(item.token_ids) == STEP_ID)
        assert item.score_positions.tolist() == positions[-len(item.score_positions) :].tolist()
        if overlong == "window":
            assert len(item.token_ids) <= limit


def test_literal_step_token_is_escaped_and_flagged():
    made = plan(["say <extra_0> aloud"])
    assert made.flags == ("escaped",)
    assert "say < extra_0> aloud<extra_0><|im_end|>" in TOKENIZER.decode(made.inputs[0].token_ids)
    assert plan(["plain"]).flags == ()


def test_windows_repeat_the_problem_and_flag_it():
    steps = [f"step {k} " + "x" * 30 for k in range(12)]
    made = plan(steps, 200)
    assert made.flags == ("windowed",) and len(made.inputs) > 1
    texts = [TOKENIZER.decode(item.token_ids) for item in made.inputs]
    assert all("user\n1+1?" in text and text.endswith("<|im_end|>\n") for text in texts)
    assert any(f"step {made.inputs[1].first_step - 1} " in text for text in texts[1:2]), "earlier steps as context"


def test_one_step_over_the_context_keeps_its_end_and_is_flagged():
    made = plan(["x" * 500 + "END"], 150)
    assert made.flags == ("cut",)
    assert "xEND<extra_0>" in TOKENIZER.decode(made.inputs[0].token_ids) and len(made.inputs[0].token_ids) == 150


def test_extend_runs_beyond_the_context_and_says_so():
    made = plan(["x" * 500], 150, overlong="extend", max_tokens=1000)
    assert made.flags == ("extended",) and len(made.inputs[0].token_ids) > 500


def test_error_and_problem_over_the_context_are_refused():
    with pytest.raises(PRMInputError, match="exceed the PRM's context of 150"):
        plan(["x" * 500], 150, overlong="error")
    with pytest.raises(PRMInputError, match="leaves no room"):
        plan(["x"], 150, problem="y" * 200)


def test_legacy_reads_the_very_last_token_of_the_unstripped_response():
    (item,) = plan(["a\n\nb\n"], reads_last_token=True).inputs
    assert item.score_positions.tolist() == [len(item.token_ids) - 1]
    text = TOKENIZER.decode(item.token_ids)
    assert text.endswith("assistant\na\n\nb\n<extra_0><|im_end|>\n")


def test_a_tokenizer_without_the_step_token_is_refused():
    other = byte_tokenizer()
    other.chat_template = None
    with pytest.raises(UserError, match="no chat template"):
        QwenPRMAdapter(other, AdapterSettings(100, 100))

    class Other(QwenPRMAdapter):
        step_token = "<step>"

    with pytest.raises(UserError, match="'<step>' must be exactly one token"):
        Other(TOKENIZER, AdapterSettings(100, 100))


def test_auto_follows_the_architecture_and_says_why():
    config = {"architectures": ["Qwen2ForProcessRewardModel"]}
    assert resolve_adapter_name("auto", config, "Gen-Verse/ReasonFlux-PRM-7B")[0] == "reasonflux_prm"
    name, reason = resolve_adapter_name("auto", config, "Qwen/Qwen2.5-Math-PRM-7B")
    assert name == "qwen_math_prm" and "Math-PRM" in reason
    with pytest.raises(UserError, match="no adapter is known for architectures"):
        resolve_adapter_name("auto", {"architectures": ["LlamaForCausalLM"]}, "x")
    with pytest.raises(UserError, match="must be one of auto, "):
        resolve_adapter_name("nope", config, "x")


def test_a_name_is_registered_once():
    with pytest.raises(ValueError, match="registered already"):
        register_prm_adapter("qwen_math_prm")(lambda tokenizer, adapter_settings: adapter())


def test_segments_tokenize_as_the_whole_text_with_the_real_tokenizer(shared_data):
    """Header and steps are tokenized apart; on real responses that gives the ids of the published way, in one piece."""
    tokenizer = qwen_with_step_token(shared_data / "qwen2.5-tokenizer")
    made = QwenPRMAdapter(tokenizer, AdapterSettings(100_000, 100_000))
    assert made.step_token_id == 151651
    rows = [json.loads(line) for line in (shared_data / "math/math_responses_50x8.jsonl").read_text().splitlines()]
    for row in rows[:25]:
        response = row["code"][0]
        steps = tuple(response[a:b] for a, b in split_text(response, SplitRule()))
        (item,) = made.plan(ScoreRequest("r", row["question"], steps)).inputs
        chat = [
            {"role": "user", "content": row["question"]},
            {"role": "assistant", "content": "<extra_0>".join(s.strip() for s in steps) + "<extra_0>"},
        ]
        text = tokenizer.apply_chat_template(chat, tokenize=False)
        assert item.token_ids == tokenizer.encode(text, add_special_tokens=False)
        assert len(item.score_positions) == len(steps)
