# SPDX-License-Identifier: Apache-2.0
"""The native PRM: loading by published weight names, and logits that do not depend on the batch."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2ForCausalLM

from tests.helpers.prm import save_tiny_prm, tiny_config
from tests.helpers.tokenizers import byte_tokenizer
from verl.rewards.prm.model import Qwen2ForProcessRewardModel, load_prm
from verl.utils.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_prm(tmp_path_factory.mktemp("prm"))


def plain_forward(folder, ids: list[int]) -> torch.Tensor:
    """Head written out by hand on transformers' own backbone, weights taken from the file by name."""
    weights = load_file(folder / "model.safetensors")
    backbone = Qwen2ForCausalLM(tiny_config(byte_tokenizer())).model
    backbone.load_state_dict({k.removeprefix("model."): v for k, v in weights.items() if k.startswith("model.")})
    hidden = backbone.eval()(torch.tensor([ids])).last_hidden_state[0]
    middle = torch.relu(hidden @ weights["score.0.weight"].T + weights["score.0.bias"])
    return middle @ weights["score.2.weight"].T + weights["score.2.bias"]


def test_weight_names_are_the_published_ones(folder):
    names = set(load_file(folder / "model.safetensors"))
    assert {"score.0.weight", "score.0.bias", "score.2.weight", "score.2.bias", "model.embed_tokens.weight"} <= names
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["Qwen2ForProcessRewardModel"]


def test_logits_equal_the_head_written_out(folder):
    ids = [5, 9, 200, 3, 77, 8]
    with torch.no_grad():
        logits = load_prm(str(folder), torch.float32)(torch.tensor([ids]))[0]
        torch.testing.assert_close(logits, plain_forward(folder, ids), atol=1e-5, rtol=1e-5)


def test_right_padding_and_row_choice_change_nothing(folder):
    model = load_prm(str(folder), torch.float32)
    batch = [[5, 9, 200, 3], [7, 7], [1, 2, 3, 4, 5, 6, 7]]
    padded = torch.zeros(3, 9, dtype=torch.long)
    for row, ids in zip(padded, batch, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    wanted = [(0, 3), (2, 6), (0, 1), (1, 1)]
    with torch.no_grad():
        rows = model(padded, rows=tuple(torch.tensor(wanted).T))
        alone = torch.stack([model(torch.tensor([batch[n]]))[0, t] for n, t in wanted])
    torch.testing.assert_close(rows, alone, atol=1e-5, rtol=1e-5)


def test_bfloat16_backbone_keeps_a_float32_head(folder):
    model = load_prm(str(folder), torch.bfloat16)
    assert model.model.embed_tokens.weight.dtype == torch.bfloat16
    assert model(torch.tensor([[1, 2, 3]])).dtype == torch.float32


def test_an_extra_language_model_head_is_ignored(folder, tmp_path):
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"lm_head.weight": torch.zeros(4, 64)}, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    load_prm(str(tmp_path), torch.float32)


def test_a_policy_is_refused(tmp_path):
    Qwen2ForCausalLM(tiny_config(byte_tokenizer())).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"lacks score\.0\.bias"):
        load_prm(str(tmp_path), torch.float32)


def test_gradients_reach_head_and_backbone():
    model = Qwen2ForProcessRewardModel(tiny_config(byte_tokenizer()))
    model(torch.tensor([[1, 2, 3]]), rows=(torch.tensor([0]), torch.tensor([2]))).sum().backward()
    assert model.score[0].weight.grad.abs().sum() > 0
    assert model.model.layers[0].self_attn.q_proj.weight.grad.abs().sum() > 0
