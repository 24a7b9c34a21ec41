# SPDX-License-Identifier: Apache-2.0
"""Policies, prompts and lengths that benchmarks measure on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.material import SHAPES
from benchmarks.policy_material import LENGTH_KINDS, draw_lengths, save_policy, train_flops, write_prompts
from recipe.miniature.tokenizer import build_tokenizer
from verl.data.rows import read_rows

TINY = replace(SHAPES["tiny"], context=64)


def test_a_written_policy_draws_nearly_evenly(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(TINY.context)
    folder = save_policy(tmp_path / "policy", TINY, tokenizer)
    policy = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        probabilities = policy(torch.arange(4, 24)[None]).logits.softmax(-1)
    end = probabilities[..., tokenizer.eos_token_id] * len(tokenizer)
    assert 0.5 < float(end.min()) and float(end.max()) < 2.0
    assert policy.config.vocab_size == len(tokenizer) and not policy.config.tie_word_embeddings


def test_prompts_fit_their_limit(tmp_path: Path) -> None:
    path = write_prompts(tmp_path / "prompts.jsonl", 50, chars=20)
    texts = [row.values["prompt"][0]["content"] for row in read_rows([str(path)], "data.train_files", ("prompt",))]
    lengths = [
        len(build_tokenizer(64).apply_chat_template([{"role": "user", "content": t}])["input_ids"]) for t in texts
    ]
    assert max(lengths) <= 20 and min(lengths) >= 10 and len(set(lengths)) > 3
    assert json.loads(path.read_text().splitlines()[0])["data_source"] == "digits"


@pytest.mark.parametrize("kind", LENGTH_KINDS)
def test_lengths_stay_in_their_range(kind: str) -> None:
    lengths = draw_lengths(kind, 200, 160, seed=1)
    assert len(lengths) == 200 and max(lengths) <= 160 and min(lengths) >= 9
    assert lengths == draw_lengths(kind, 200, 160, seed=1)
    assert (len(set(lengths)) == 1) == (kind == "equal")


def test_most_of_a_tail_is_short() -> None:
    lengths = draw_lengths("tail", 500, 160)
    assert sorted(lengths)[250] < 60 < max(lengths)


def test_operations_of_a_training_pass() -> None:
    head_alone = train_flops(replace(TINY, layers=0), vocabulary=10, lengths=[4, 6], num_targets=7)
    assert head_alone == 3 * 2 * TINY.hidden * 10 * 7
    assert train_flops(TINY, 10, [4, 6], 7) - head_alone == 3 * TINY.forward_flops([4, 6])
