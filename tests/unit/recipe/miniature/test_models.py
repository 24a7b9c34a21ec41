# SPDX-License-Identifier: Apache-2.0
import random

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from recipe.miniature.models import build_policy, build_prm, prm_from_policy, save
from recipe.miniature.problems import draw_problem, solve
from recipe.miniature.tokenizer import build_tokenizer
from verl.rewards.prm.adapters import AdapterSettings, get_prm_adapter
from verl.rewards.prm.model import load_prm
from verl.rewards.prm.types import ScoreRequest
from verl.utils.tokenizer import decode_with_starts, load_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("models")
    save(str(place), seed=0)
    return place


def test_text_survives_and_a_blank_line_is_one_token():
    tokenizer = build_tokenizer()
    rng = random.Random(0)
    for _ in range(50):
        text = solve(draw_problem(rng), rng, 0.3, ("arithmetic",)).text
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text
        assert len(ids) == len(text) - 4 - len("Answer: ") + 1
    printable = "".join(map(chr, range(32, 127))) + "\n"
    assert tokenizer.decode(tokenizer(printable)["input_ids"]) == printable
    assert tokenizer("é")["input_ids"] == [tokenizer.unk_token_id]


def test_a_prompt_costs_one_token_more_than_the_problem():
    tokenizer = build_tokenizer()
    messages = [{"role": "user", "content": "4*7-9+8-3"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert tokenizer.decode(ids) == "4*7-9+8-3\n" and len(ids) == 10
    messages.append({"role": "assistant", "content": "4*7=28"})
    assert tokenizer.apply_chat_template(messages, tokenize=False) == "4*7-9+8-3\n4*7=28<eos>"


def test_tokens_know_where_they_begin_in_the_text(folder):
    tokenizer = load_tokenizer(str(folder / "policy_init"))
    ids = tokenizer("4*7=28\n\nAnswer: 28", add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    text, starts = decode_with_starts(tokenizer, ids)
    assert text == "4*7=28\n\nAnswer: 28"
    assert starts.tolist() == [0, 1, 2, 3, 4, 5, 6, 8, 16, 17, 18]


def test_the_policy_loads_by_its_folder_with_the_same_weights(folder):
    place = folder / "policy_init"
    policy = AutoModelForCausalLM.from_pretrained(place)
    expected = build_policy(seed=0)
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(policy(ids).logits, expected.eval()(ids).logits)
    assert 400_000 < sum(weight.numel() for weight in policy.parameters()) < 700_000
    assert policy.config.tie_word_embeddings
    tokenizer = AutoTokenizer.from_pretrained(place)
    assert policy.config.eos_token_id == policy.generation_config.eos_token_id == tokenizer.eos_token_id
    assert policy.config.vocab_size == len(tokenizer)


def test_the_prm_loads_and_scores_each_step(folder):
    prm = load_prm(str(folder / "prm_init"), torch.float32)
    tokenizer = load_tokenizer(str(folder / "prm_init"))
    adapter = get_prm_adapter("reasonflux_prm")(tokenizer, AdapterSettings(256, 256))
    plan = adapter.plan(ScoreRequest("r", "1+1+1", ("1+1=2\n\n", "2+1=3\n\n", "Answer: 3")))
    item = plan.inputs[0]
    assert plan.flags == ()
    assert tokenizer.decode(item.token_ids) == "1+1+1\n1+1=2<extra_0>2+1=3<extra_0>Answer: 3<extra_0><eos>"
    positions = torch.from_numpy(item.score_positions)
    logits = prm(torch.tensor([item.token_ids]), rows=(torch.zeros_like(positions), positions))
    assert logits.shape == (3, 2) and torch.isfinite(logits).all()


def test_a_prm_from_a_policy_has_its_backbone_and_reads_the_step_token_as_a_blank_line(folder):
    policy = build_policy(seed=0)
    prm = prm_from_policy(str(folder / "policy_init"), seed=3)
    tokenizer = build_tokenizer()
    with_blank_line = tokenizer("1+1=2\n\n", add_special_tokens=False, return_tensors="pt")["input_ids"]
    with_step_token = tokenizer("1+1=2<extra_0>", add_special_tokens=False, return_tensors="pt")["input_ids"]
    assert not torch.equal(with_blank_line, with_step_token)
    hidden = policy.eval().model(with_blank_line).last_hidden_state
    assert torch.equal(prm.eval().model(with_step_token).last_hidden_state, hidden)
    assert torch.equal(prm.score[0].weight, build_prm(seed=3).score[0].weight)


def test_the_seed_decides_the_weights():
    one, same, other = (next(build_policy(seed).parameters()) for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
