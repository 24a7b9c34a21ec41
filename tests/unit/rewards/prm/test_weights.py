# SPDX-License-Identifier: Apache-2.0
"""Single tensors out of sharded, single and pickled checkpoints; what the backbone is and how its names begin."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.helpers.prm_families import rewrite_config, rewrite_tensors, save_family
from verl.rewards.prm.scoring_model import load_backbone
from verl.rewards.prm.weights import Backbone, find_backbone, lm_head_name, read_tensors, weight_names
from verl.utils.errors import UserError

NAME = "model.embed_tokens.weight"


@pytest.fixture
def folder(tmp_path):
    return save_family("math_shepherd", tmp_path / "prm")


def shard(folder) -> dict[str, torch.Tensor]:
    """Write the checkpoint in two files with an index; returns its tensors."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    files = {name: f"part{n % 2}.safetensors" for n, name in enumerate(tensors)}
    for file in set(files.values()):
        save_file({name: tensors[name] for name in tensors if files[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    return tensors


def pickle(folder) -> dict[str, torch.Tensor]:
    """Write the checkpoint as older ones are."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    return tensors


@pytest.mark.parametrize("rewrite", [shard, pickle])
def test_tensors_and_rows_come_out_of_any_layout(folder, rewrite):
    tensors = rewrite(folder)
    assert set(weight_names(folder)) == set(tensors)
    assert torch.equal(read_tensors(folder, [NAME])[NAME], tensors[NAME])
    rows = read_tensors(folder, [NAME, "lm_head.weight"], rows=[5, 2])
    assert torch.equal(rows[NAME], tensors[NAME][[5, 2]])
    assert torch.equal(rows["lm_head.weight"], tensors["lm_head.weight"][[5, 2]])
    with pytest.raises(UserError, match="must hold nothing.weight"):
        read_tensors(folder, [NAME, "nothing.weight"])


def test_a_damaged_pickled_file_is_refused(folder):
    pickle(folder)
    (folder / "pytorch_model.bin").write_bytes(b"not a file of tensors")
    with pytest.raises(UserError, match="pytorch_model.bin.*cannot be read as a dict of tensors"):
        weight_names(folder)


def test_the_backbone_is_named_with_its_prefix(folder):
    assert find_backbone(folder) == Backbone("mistral", "MistralForCausalLM", "model.", 64)


def test_a_backbone_below_another_prefix_is_found_and_loaded(folder):
    ids = torch.tensor([[3, 9, 300, 4]])
    before = load_backbone(folder, torch.float32)(input_ids=ids)[0]
    tensors = load_file(folder / "model.safetensors")
    rewrite_tensors(folder, dict.fromkeys(tensors) | {f"pretrained_model.{name}": t for name, t in tensors.items()})
    assert find_backbone(folder).prefix == "pretrained_model.model."
    assert torch.equal(load_backbone(folder, torch.float32)(input_ids=ids)[0], before)


def test_other_backbones_and_missing_weights_are_refused(folder):
    rewrite_tensors(folder, {"model.layers.1.mlp.up_proj.weight": None})
    with pytest.raises(UserError, match=r"lacks weights of its backbone: layers\.1\.mlp\.up_proj\.weight"):
        load_backbone(folder, torch.float32)
    rewrite_tensors(folder, {NAME: None})
    with pytest.raises(UserError, match="must hold a backbone"):
        find_backbone(folder)
    rewrite_config(folder, model_type="bert")
    with pytest.raises(UserError, match="model_type 'bert'.* must be one of qwen2, llama, mistral"):
        find_backbone(folder)


def test_the_head_of_a_language_model_is_its_own_or_a_tied_embedding():
    names = ["model.layers.0.x", NAME]
    assert lm_head_name([*names, "lm_head.weight"], {"tie_word_embeddings": True}) == "lm_head.weight"
    assert lm_head_name(names, {"tie_word_embeddings": True}) == NAME
    assert lm_head_name(names, {}) not in names
