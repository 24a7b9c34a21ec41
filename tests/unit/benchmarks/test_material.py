# SPDX-License-Identifier: Apache-2.0
"""What benchmarks measure on: lengths, counting of operations, reading of texts, models that load."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.material import (
    SHAPES,
    Answer,
    Shape,
    make_answers,
    pick,
    prm_tokenizer,
    read_answers,
    save_prm,
    to_requests,
)
from verl.rewards.prm.model import load_prm
from verl.rewards.prm.spec import PRMSpec, load_adapter


def test_operations_are_counted_as_a_loop_would() -> None:
    shape = Shape(hidden=8, intermediate=12, layers=3, heads=4, kv_heads=2, context=64)
    projections = 8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 12  # q, k and v, o, three of the MLP
    assert shape.layer_parameters == 3 * projections
    wanted = 0.0
    for length in (1, 5):
        for position in range(length):
            wanted += 2 * 3 * projections + 3 * 2 * (2 * 8) * (position + 1)  # each key: one product in, one out
    assert shape.forward_flops([1, 5]) == wanted


def test_the_large_shape_is_that_of_qwen_7b() -> None:
    assert SHAPES["7b"].layer_parameters == pytest.approx(6.53e9, rel=0.005)
    assert SHAPES["4m"].layer_parameters == pytest.approx(3.93e6, rel=0.005)


def test_parameters_of_the_layers_match_the_model(tmp_path: Path) -> None:
    shape = SHAPES["tiny"]
    folder = save_prm(tmp_path, shape, prm_tokenizer(None, shape.context), "cpu", torch.float32)
    model = load_prm(str(folder), torch.float32)
    matrices = [p for name, p in model.model.layers.named_parameters() if p.dim() == 2]
    assert sum(p.numel() for p in matrices) == shape.layer_parameters


def test_generated_answers_have_lengths_over_the_whole_range() -> None:
    answers = make_answers(16, longest_chars=3000, seed=1)
    lengths = sorted(len(answer.response) for answer in answers)
    assert lengths[0] < 200 and 2900 < lengths[-1] <= 3001
    assert [len(a.response) for a in answers] != lengths, "they must not come sorted"
    assert answers == make_answers(16, longest_chars=3000, seed=1) != make_answers(16, longest_chars=3000, seed=2)
    requests = to_requests(answers)
    assert all("".join(request.steps) == answer.response for request, answer in zip(requests, answers, strict=True))
    assert max(len(request.steps) for request in requests) > 5


def test_texts_are_read_with_one_or_several_responses(tmp_path: Path) -> None:
    rows = [{"question": "q", "code": ["a", "b"]}, {"problem": "p", "response": "c"}]
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert read_answers(str(tmp_path / "texts.jsonl")) == [Answer("q", "a"), Answer("q", "b"), Answer("p", "c")]


def test_a_row_without_a_response_is_named(tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text('{"question": "q", "response": "a"}\n{"question": "q"}\n')
    with pytest.raises(ValueError, match="line 2: needs one of"):
        read_answers(str(tmp_path / "texts.jsonl"))


def test_a_draw_has_no_answer_twice_and_says_when_there_are_too_few() -> None:
    answers = [Answer("p", str(n)) for n in range(10)]
    assert sorted(pick(answers, 10), key=lambda a: a.response) == answers
    with pytest.raises(ValueError, match="only 10"):
        pick(answers, 11)


def test_a_real_tokenizer_gets_the_step_token(shared_data: Path, tmp_path: Path) -> None:
    shape = SHAPES["tiny"]
    tokenizer = prm_tokenizer(str(shared_data / "qwen2.5-tokenizer"), shape.context)
    folder = save_prm(tmp_path, shape, tokenizer, "cpu", torch.float32)
    adapter = load_adapter(PRMSpec(path=str(folder))).adapter
    plan = adapter.plan(to_requests([Answer("1+1?", "One.\n\nTwo.")])[0])
    ids = plan.inputs[0].token_ids
    assert [ids[position] for position in plan.inputs[0].score_positions] == [len(tokenizer) - 1] * 2
