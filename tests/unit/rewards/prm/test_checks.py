# SPDX-License-Identifier: Apache-2.0
"""Folders that are no PRM are refused from their files alone."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2ForCausalLM

from tests.helpers.prm import save_tiny_prm, tiny_config
from tests.helpers.tokenizers import byte_tokenizer
from verl.rewards.prm.checks import check_prm, tensor_shapes
from verl.rewards.prm.spec import PRMSpec
from verl.utils.errors import UserError


@pytest.fixture(scope="module")
def prm(tmp_path_factory):
    return save_tiny_prm(tmp_path_factory.mktemp("prm"))


@pytest.fixture
def copy(prm, tmp_path):
    return shutil.copytree(prm, tmp_path / "prm")


def check(folder, **changes):
    return check_prm(PRMSpec(path=str(folder), **changes), max_prompt_tokens=512, max_response_tokens=1024)


def rewrite_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_prm_passes_with_facts_and_notices(prm):
    facts = check(prm)
    assert (facts.adapter, facts.hidden_size, facts.context_tokens, facts.max_tokens) == (
        "reasonflux_prm",
        64,
        1024,
        1024,
    )
    assert any("1536 tokens, the PRM's context is 1024" in notice and "windows" in notice for notice in facts.notices)


def test_extend_widens_the_engine(prm):
    facts = check(prm, overlong="extend", longest_input=1700)
    assert facts.max_tokens == 1700 and any("up to 1700 tokens" in notice for notice in facts.notices)


def test_headers_give_every_shape_without_reading_weights(prm):
    shapes = tensor_shapes(prm)
    assert shapes == {name: tuple(tensor.shape) for name, tensor in load_file(prm / "model.safetensors").items()}


def test_sharded_checkpoints_are_read_through_their_index(copy):
    weights = load_file(copy / "model.safetensors")
    head = {name: weights.pop(name) for name in list(weights) if name.startswith("score")}
    save_file(weights, copy / "a.safetensors")
    save_file(head, copy / "b.safetensors")
    (copy / "model.safetensors").unlink()
    weight_map = dict.fromkeys(weights, "a.safetensors") | dict.fromkeys(head, "b.safetensors")
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    check(copy)
    (copy / "b.safetensors").unlink()
    with pytest.raises(UserError, match="b.safetensors.*is missing"):
        check(copy)


def test_a_policy_is_refused(tmp_path):
    Qwen2ForCausalLM(tiny_config(byte_tokenizer())).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"no adapter is known for architectures \['Qwen2ForCausalLM'\]"):
        check(tmp_path)
    rewrite_config(tmp_path, architectures=["Qwen2ForProcessRewardModel"])
    with pytest.raises(UserError, match=r"score\.0\.weight of shape \[64, 64\], but it is missing"):
        check(tmp_path)


def test_a_head_of_another_shape_is_refused(copy):
    weights = load_file(copy / "model.safetensors")
    save_file(weights | {"score.2.weight": torch.zeros(1, 64)}, copy / "model.safetensors")
    with pytest.raises(UserError, match=r"score\.2\.weight of shape \[2, 64\], but it has shape \[1, 64\]"):
        check(copy)


def test_a_damaged_file_is_refused(copy):
    (copy / "model.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00not json at all.")
    with pytest.raises(UserError, match="is no safetensors file"):
        check(copy)
    (copy / "model.safetensors").write_bytes(b"abc")
    with pytest.raises(UserError, match="is no safetensors file"):
        check(copy)


def test_a_tokenizer_without_the_separator_is_refused(copy):
    text = (copy / "tokenizer.json").read_text().replace("<extra_0>", "<other>")
    (copy / "tokenizer.json").write_text(text)
    with pytest.raises(UserError, match="'<extra_0>' must be exactly one token of the PRM's tokenizer, but is 9"):
        check(copy)


def test_missing_folders_and_configs_are_refused(tmp_path, copy):
    with pytest.raises(UserError, match="must be an existing folder or a hub name"):
        check(tmp_path / "nothing")
    (copy / "config.json").unlink()
    with pytest.raises(UserError, match="readable config.json"):
        check(copy)


def test_a_folder_with_pickled_weights_gets_a_notice(copy):
    (copy / "model.safetensors").unlink()
    assert any("checked only when it is loaded" in notice for notice in check(copy).notices)
