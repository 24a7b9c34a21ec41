# SPDX-License-Identifier: Apache-2.0
"""Every PRM family against its published reading, written out here with plain transformers on a tiny checkpoint.

Text, tokens, positions and formula below follow the model cards, not the code under test: one unpadded forward per
response (per step where the published code asks so), the model class that its config.json names.
"""

from __future__ import annotations

import asyncio
import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Qwen2ForCausalLM, Qwen2ForTokenClassification

from tests.helpers.prm_families import FAMILIES, family_spec, save_family
from verl.rewards.prm.adapters_chat import QWEN_MATH_SYSTEM
from verl.rewards.prm.score_space import to_score
from verl.rewards.prm.scorer import HFScorer
from verl.rewards.prm.spec import load_adapter
from verl.rewards.prm.types import PRMInputError, ScoreRequest
from verl.utils.tokenizer import load_tokenizer

PROBLEM = "What is $\\frac{1}{2} + \\sqrt{é}$ — 中文?"
STEPS = (
    "First,\nwe add:\n$$x^2 + y_{1}$$",
    "So $1 + 1 = 2$ - or is it?",
    "Überall 中文 \U0001f600, \\boxed{\\frac{3}{4}}.",
    "Step 9: done - all of it.",
)
SEPARATOR = "\n\n"


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    @functools.cache
    def make(adapter: str) -> Path:
        return save_family(adapter, tmp_path_factory.mktemp(adapter))

    return make


def pieces_of(steps) -> tuple[str, ...]:
    """Steps as a response holds them: all but the last end with the separator."""
    return (*(step + SEPARATOR for step in steps[:-1]), *steps[-1:])


def score(spec, requests):
    async def run():
        scorer = HFScorer(spec)
        await scorer.start()
        try:
            return await asyncio.gather(*(scorer(request) for request in requests), return_exceptions=True)
        finally:
            await scorer.close()

    return asyncio.run(run())


# --- the published readings: ids and positions of one input, then scores ---------------------------------------------


def chat(tokenizer, messages) -> list[int]:
    pairs = [{"role": role, "content": content} for role, content in messages]
    return tokenizer.encode(tokenizer.apply_chat_template(pairs, tokenize=False), add_special_tokens=False)


def process_input(tokenizer, problem, steps, system=()):
    answer = "".join(step + "<extra_0>" for step in steps)
    ids = chat(tokenizer, [*system, ("user", problem), ("assistant", answer)])
    return ids, [place for place, token in enumerate(ids) if token == tokenizer.convert_tokens_to_ids("<extra_0>")]


def math_process_input(tokenizer, problem, steps):
    return process_input(tokenizer, problem, steps, [("system", QWEN_MATH_SYSTEM)])


def lines_input(tokenizer, problem, steps, before="", behind=""):
    ids = tokenizer.encode(before + problem + behind, add_special_tokens=False)
    positions = []
    for step in steps:
        ids += tokenizer.encode(step, add_special_tokens=False) + tokenizer.encode("\n", add_special_tokens=False)
        positions.append(len(ids) - 1)
    return ids, positions


def skywork_input(tokenizer, problem, steps):
    return lines_input(tokenizer, problem, steps, tokenizer.bos_token, "\n")


def shepherd_input(tokenizer, problem, steps):
    lines = [s if s.startswith("Step ") else f"Step {n}: {s}" for n, s in enumerate(steps, start=1)]
    ids = tokenizer.encode(f"{problem} " + "\n".join(f"{line} ки" for line in lines))
    return ids, [place for place, token in enumerate(ids) if token == tokenizer.convert_tokens_to_ids("▁ки")]


def rlhflow_input(tokenizer, problem, steps):
    """The whole conversation; each position is the one three before the end of the conversation so far."""
    turns, positions = [], []
    for k, step in enumerate(steps):
        turns += [("user", f"{problem} {step}" if k == 0 else step), ("assistant", "+")]
        positions.append(len(chat(tokenizer, turns)) - 3)
    return chat(tokenizer, turns), positions


def implicit_input(tokenizer, problem, pieces):
    """Positions: the last token before the response, then each step's last token."""
    ids = chat(tokenizer, [("user", problem), ("assistant", "".join(pieces))])
    begin = len(chat(tokenizer, [("user", problem)])) + len(tokenizer.encode("<|im_start|>assistant\n"))
    ends = [begin + len(tokenizer.encode("".join(pieces[: k + 1]))) - 1 for k in range(len(pieces))]
    return ids, [begin - 1, *ends]


INPUTS = {
    "reasonflux_prm": process_input,
    "qwen_math_prm": math_process_input,
    "skywork_prm": skywork_input,
    "pure_prm": lines_input,
    "math_shepherd": shepherd_input,
    "rlhflow_prm": rlhflow_input,
    "implicit_prm": implicit_input,
}


@torch.no_grad()
def run_causal(folder, ids):
    """Logits and last hidden states of the checkpoint's language model."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    out = model(torch.tensor([ids]), output_hidden_states=True)
    return out.logits[0], out.hidden_states[-1][0]


@torch.no_grad()
def process_scores(folder, ids, positions):
    weights = load_file(folder / "model.safetensors")
    model = Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    hidden = model.model(torch.tensor([ids]))[0][0, positions]
    middle = torch.relu(hidden @ weights["score.0.weight"].T + weights["score.0.bias"])
    return torch.softmax(middle @ weights["score.2.weight"].T + weights["score.2.bias"], dim=-1)[:, 1]


def value_scores(folder, ids, positions):
    weights = load_file(folder / "model.safetensors")
    hidden = run_causal(folder, ids)[1][positions]
    return torch.sigmoid(hidden @ weights["v_head.summary.weight"][0] + weights["v_head.summary.bias"][0])


@torch.no_grad()
def label_scores(folder, ids, positions):
    model = Qwen2ForTokenClassification.from_pretrained(folder, dtype=torch.float32).eval()
    probabilities = model(torch.tensor([ids])).logits[0, positions].softmax(dim=-1)
    return probabilities[:, 1] - probabilities[:, 0]


def plus_scores(folder, ids, positions):
    tokenizer = load_tokenizer(str(folder))
    plus, minus = (tokenizer.encode(sign)[-1] for sign in "+-")
    return run_causal(folder, ids)[0][positions][:, [plus, minus]].softmax(dim=-1)[:, 0]


def ratio_scores(folder, ids, positions):
    targets = torch.tensor(ids[1:])[:, None]
    own, other = (
        run_causal(path, ids)[0][:-1].log_softmax(dim=-1).gather(1, targets)[:, 0]
        for path in (folder, folder / "reference")
    )
    ratio = 0.5 * (own - other)  # of tokens 1 to T - 1
    spans = zip(positions[:-1], positions[1:], strict=True)
    return torch.stack([ratio[begin:end].sum() for begin, end in spans])


SCORES = {
    "reasonflux_prm": ("prob", process_scores),
    "qwen_math_prm": ("prob", process_scores),
    "skywork_prm": ("prob", value_scores),
    "pure_prm": ("signed", label_scores),
    "math_shepherd": ("prob", plus_scores),
    "rlhflow_prm": ("prob", plus_scores),
    "implicit_prm": ("difference", ratio_scores),
}


def prefix_scores(folder, problem, steps):
    """ReasonFlux-PRM-1.5B: one input per prefix, sigmoid of the value at its last token."""
    tokenizer, head = load_tokenizer(str(folder)), torch.load(folder / "reward_head.pt", weights_only=True)
    texts = [problem + SEPARATOR.join(steps[: k + 1]) for k in range(len(steps))]
    last = torch.stack([run_causal(folder, tokenizer.encode(text))[1][-1] for text in texts])
    return torch.sigmoid(last @ head["weight"][0] + head["bias"][0])


def published_scores(adapter, folder, problem, steps) -> tuple[str, np.ndarray]:
    """Score space of the published number, and the numbers."""
    if adapter == "reasonflux_prm_1_5b":
        return "prob", prefix_scores(folder, problem, steps).numpy()
    space, formula = SCORES[adapter]
    shown = pieces_of(steps) if adapter == "implicit_prm" else steps
    ids, positions = INPUTS[adapter](load_tokenizer(str(folder)), problem, shown)
    return space, formula(folder, ids, positions).numpy()


def in_space(logits: np.ndarray, space: str) -> np.ndarray:
    """Our number for a published one; `difference` is right - wrong without the limits of `logit_diff`."""
    return logits[:, 1] - logits[:, 0] if space == "difference" else to_score(logits, space)


# --- the contract -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", FAMILIES)
def test_scores_are_the_published_ones_in_order_and_number(adapter, folder_of):
    folder = folder_of(adapter)
    space, expected = published_scores(adapter, folder, PROBLEM, STEPS)
    (answer,) = score(family_spec(adapter, folder), [ScoreRequest("r", PROBLEM, pieces_of(STEPS))])
    assert answer.logits.shape == (len(STEPS), 2) and answer.logits.dtype == np.float32 and answer.flags == ()
    np.testing.assert_allclose(in_space(answer.logits, space), expected, atol=5e-5)
    assert np.ptp(expected) > 1e-3, "steps that all score alike would prove nothing"


@pytest.mark.parametrize("adapter", FAMILIES)
def test_a_batch_of_eight_scores_as_a_batch_of_one(adapter, folder_of):
    folder = folder_of(adapter)
    requests = [
        ScoreRequest(f"r{n}", PROBLEM + "?" * (11 * n), pieces_of(STEPS[: 1 + n % 4]) + ("and so on " * n + ".",))
        for n in range(8)
    ]
    alone, together = (score(family_spec(adapter, folder, max_num_batched_tokens=most), requests) for most in (1, 1e6))
    for request, one, other in zip(requests, alone, together, strict=True):
        assert one.logits.shape == (len(request.steps), 2)
        np.testing.assert_allclose(one.logits, other.logits, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("adapter", FAMILIES)
def test_no_steps_give_no_scores(adapter, folder_of):
    (answer,) = score(family_spec(adapter, folder_of(adapter)), [ScoreRequest("r", PROBLEM, ())])
    assert answer.logits.shape == (0, 2)


@pytest.mark.parametrize("adapter", FAMILIES)
def test_one_forward_scores_all_steps_unless_the_model_reads_whole_responses(adapter, folder_of):
    plan = load_adapter(family_spec(adapter, folder_of(adapter))).adapter.plan(
        ScoreRequest("r", PROBLEM, pieces_of(STEPS))
    )
    assert len(plan.inputs) == (len(STEPS) if adapter == "reasonflux_prm_1_5b" else 1)


LONG = tuple(f"Step {k}: " + f"we know {k} + {k} - " * 6 + "." for k in range(1, 25))


@pytest.mark.parametrize("adapter", INPUTS)
def test_windows_of_a_long_response_are_inputs_of_the_published_form(adapter, folder_of):
    """Each window is exactly what the published code would be given for a run of steps, and scores as that does."""
    folder, pieces = folder_of(adapter), pieces_of(LONG)
    spec = family_spec(adapter, folder)
    plan = load_adapter(spec).adapter.plan(ScoreRequest("long", PROBLEM, pieces))
    assert plan.flags == ("windowed",) and len(plan.inputs) > 2
    space, formula = SCORES[adapter]
    shown, expected = pieces if adapter == "implicit_prm" else LONG, []
    for item in plan.inputs:
        count = len(item.score_positions) - plan.differences
        first = first_step_shown(adapter, folder, item, shown[: item.first_step + count])
        assert len(item.token_ids) <= 1024
        assert first < item.first_step or item.first_step == 0, "a window shows earlier steps as context"
        ids, positions = INPUTS[adapter](load_tokenizer(str(folder)), PROBLEM, shown[first : item.first_step + count])
        expected.append(formula(folder, ids, positions).numpy()[-count:])
    (answer,) = score(spec, [ScoreRequest("long", PROBLEM, pieces)])
    assert answer.logits.shape == (len(LONG), 2) and answer.flags == ("windowed",)
    np.testing.assert_allclose(in_space(answer.logits, space), np.concatenate(expected), atol=1e-4)


def first_step_shown(adapter, folder, item, steps) -> int:
    tokenizer = load_tokenizer(str(folder))
    found = [
        k for k in range(item.first_step + 1) if INPUTS[adapter](tokenizer, PROBLEM, steps[k:])[0] == item.token_ids
    ]
    assert len(found) == 1, "the window is no input of the published form"
    return found[0]


def test_too_long_a_prefix_loses_its_earliest_steps(folder_of):
    """ReasonFlux-PRM-1.5B: problem and the last steps, as many as fit, end with the step that is scored."""
    folder = folder_of("reasonflux_prm_1_5b")
    spec, tokenizer = family_spec("reasonflux_prm_1_5b", folder), load_tokenizer(str(folder))
    request = ScoreRequest("long", PROBLEM, pieces_of(LONG))
    plan = load_adapter(spec).adapter.plan(request)
    assert plan.flags == ("windowed",) and [item.first_step for item in plan.inputs] == list(range(len(LONG)))
    for k, item in enumerate(plan.inputs):
        texts = [PROBLEM + SEPARATOR.join(LONG[first : k + 1]) for first in range(k + 1)]
        fitting = [tokenizer.encode(text) for text in texts if len(tokenizer.encode(text)) <= 1024]
        assert item.token_ids == fitting[0] and item.score_positions.tolist() == [len(item.token_ids) - 1]
    (answer,) = score(spec, [request])
    _, expected = published_scores("reasonflux_prm_1_5b", folder, PROBLEM, LONG[:5])
    np.testing.assert_allclose(to_score(answer.logits, "prob")[:5], expected, atol=2e-5)


@pytest.mark.parametrize("adapter", FAMILIES)
def test_a_step_longer_than_the_context_is_cut_and_a_problem_is_refused(adapter, folder_of):
    folder = folder_of(adapter)
    requests = [
        ScoreRequest("step", PROBLEM, ("first.\n\n", "a + b - c. " * 200)),
        ScoreRequest("problem", "a + b - c. " * 200, ("first.",)),
    ]
    cut, refused = score(family_spec(adapter, folder), requests)
    assert cut.logits.shape == (2, 2) and "cut" in cut.flags and np.isfinite(cut.logits).all()
    assert isinstance(refused, PRMInputError) and "leaves no room" in str(refused)
    (too_long,) = score(family_spec(adapter, folder, overlong="error"), requests[:1])
    assert isinstance(too_long, PRMInputError) and "exceed the PRM's context of 1024" in str(too_long)
    (extended,) = score(family_spec(adapter, folder, overlong="extend", longest_input=6000), requests[:1])
    assert extended.flags == ("extended",) and extended.logits.shape == (2, 2)


MARKS = ("<extra_0>", "ки", "<|im_end|>", "<s>", "</s>", "<|eot_id|>", "<|start_header_id|>", "+", "-", "\n", "\n\n\n")


@pytest.mark.parametrize("adapter", FAMILIES)
def test_markup_in_the_text_makes_no_step_and_ends_no_turn(adapter, folder_of):
    folder = folder_of(adapter)
    steps = tuple(f"{mark} and {mark} {mark}: mid {mark}.\n\n" for mark in MARKS)
    spec = family_spec(adapter, folder, max_length=None, overlong="extend", longest_input=9000)
    plan = load_adapter(spec).adapter.plan(ScoreRequest("r", " ".join(MARKS), steps))
    assert "escaped" in plan.flags
    assert sum(len(item.score_positions) - plan.differences for item in plan.inputs) == len(steps)
    tokenizer = load_tokenizer(str(folder))
    clean = load_adapter(spec).adapter.plan(ScoreRequest("r", "?", tuple("x\n\n" for _ in steps)))
    special = set(tokenizer.all_special_ids) | set(tokenizer.backend_tokenizer.get_added_tokens_decoder())
    if adapter == "math_shepherd":
        special.add(tokenizer.convert_tokens_to_ids("▁ки"))
    for item, plain in zip(plan.inputs, clean.inputs, strict=True):
        marks, wanted = ([token for token in each.token_ids if token in special] for each in (item, plain))
        assert marks == wanted, "only the family's own markup is in the input"
