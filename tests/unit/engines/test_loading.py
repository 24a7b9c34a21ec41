# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig

from tests.helpers.tiny_models import save_tiny_model, tiny_model
from verl.engines.attention import IMPLEMENTATION
from verl.engines.base import EngineSpec
from verl.engines.heads import PackedModel
from verl.engines.loading import empty_model, load_model
from verl.utils.errors import UserError

PRM = "verl.rewards.prm.model:Qwen2ForProcessRewardModel"


@pytest.mark.parametrize("tied", [True, False])
def test_structure_and_weights_have_the_same_names(tmp_path: Path, tied: bool) -> None:
    spec = EngineSpec(save_tiny_model(tmp_path, tied))
    empty, full = empty_model(spec), load_model(spec)
    assert {p.device.type for p in empty.parameters()} == {"meta"}
    assert [name for name, _ in empty.named_parameters()] == [name for name, _ in full.named_parameters()]
    assert empty.config._attn_implementation == full.config._attn_implementation == IMPLEMENTATION
    assert (empty.lm_head.weight is empty.model.embed_tokens.weight) == tied


@pytest.mark.parametrize("path", ["", "./nowhere", "/nowhere/model", "a/b/c"])
def test_a_path_without_a_model_is_a_user_error(path: str) -> None:
    with pytest.raises(UserError, match="actor_rollout_ref.model.path"):
        empty_model(EngineSpec(path))


def test_a_model_of_another_kind_is_a_user_error(tmp_path: Path) -> None:
    class NotALanguageModel(BertConfig):
        model_type = "bert"

    NotALanguageModel().save_pretrained(tmp_path)
    config = (tmp_path / "config.json").read_text().replace('"bert"', '"vit"')
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(UserError, match="'vit' model"):
        empty_model(EngineSpec(str(tmp_path)))


def test_overrides_replace_entries_of_the_config_and_unknown_ones_are_a_user_error(tmp_path: Path) -> None:
    path = save_tiny_model(tmp_path)
    assert empty_model(EngineSpec(path, config_overrides={"attention_dropout": 0.25})).config.attention_dropout == 0.25
    with pytest.raises(UserError) as caught:  # transformers 5 has it in `rope_parameters`
        empty_model(EngineSpec(path, config_overrides={"rope_theta": 1e6}))
    assert "actor_rollout_ref.model.override_config={'rope_theta': 1000000.0}" in str(caught.value)
    assert "a 'qwen2' model has no such entry" in str(caught.value)
    assert "rope_parameters" in str(caught.value)


def test_missing_weights_are_a_user_error_and_not_random_numbers(tmp_path: Path) -> None:
    path = save_tiny_model(tmp_path, tied=False)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 1 weights.*layers.1.mlp.up_proj"):
        load_model(EngineSpec(path))


def test_a_prm_starts_from_a_policy_only_when_its_head_may_be_fresh(tmp_path: Path) -> None:
    path = save_tiny_model(tmp_path)
    with pytest.raises(UserError, match=r"score\."):
        load_model(EngineSpec(path, model_class=PRM))
    model = load_model(EngineSpec(path, model_class=PRM, fresh_weights=("score.",)))
    assert model.model.embed_tokens.weight.equal(tiny_model().model.embed_tokens.weight)
    assert all(torch.isfinite(p).all() for p in model.score.parameters())


def test_a_head_that_the_model_does_not_have_is_a_user_error() -> None:
    with pytest.raises(UserError, match="score"):
        PackedModel(tiny_model(), "classification", 8)
