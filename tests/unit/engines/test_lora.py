# SPDX-License-Identifier: Apache-2.0
"""Where adapters go, what they are called, and what is refused. Training: tests/contract/test_fsdp_parallel.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.helpers.tiny_models import tiny_config, tiny_model
from verl.engines.adapters import AdapterPair, LoraSpec, merge, peft_names, plain_name
from verl.engines.lora import LoraAdapters
from verl.utils.errors import UserError

PROJECTIONS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_all_linear_is_every_projection_of_every_layer_and_not_the_head() -> None:
    model = tiny_model()
    names = {name for name, _ in model.named_parameters()}
    pairs = LoraAdapters(model, LoraSpec(rank=2, alpha=8)).pairs
    assert len(pairs) == 2 * len(PROJECTIONS)
    assert {name.split(".")[-3] for name in pairs} == PROJECTIONS
    assert all(pair.scale == 4.0 for pair in pairs.values())
    held = dict(model.named_parameters())
    assert {plain_name(name) for name in held if ".lora_" not in name} == names
    for name, pair in pairs.items():
        assert held[pair.up].shape[0] == held[name].shape[0] and held[pair.down].shape[1] == held[name].shape[1]


def test_an_empty_structure_gets_the_same_names_without_memory() -> None:
    spec = LoraSpec(rank=2, target_modules=("q_proj", "down_proj"))
    with torch.device("meta"):
        empty = type(tiny_model())(tiny_config())
    assert LoraAdapters(empty, spec).pairs == LoraAdapters(tiny_model(), spec).pairs
    assert all(parameter.is_meta for parameter in empty.parameters())


def test_left_out_is_the_model_as_it_was_and_gradients_stay_where_they_are() -> None:
    ids = torch.tensor([[5, 6, 7]])
    plain, model = tiny_model(), tiny_model()
    adapters = LoraAdapters(model, LoraSpec(rank=2))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_()
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    with torch.no_grad():
        with adapters.left_out():
            assert torch.equal(model(ids).logits, plain(ids).logits)
            assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == before
        assert not torch.allclose(model(ids).logits, plain(ids).logits)


@pytest.mark.parametrize("targets", [("no_such",), ("lm_head",), ("embed_tokens",), ("q_proj", "lm_head")])
def test_what_cannot_have_adapters_is_refused(targets: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match=r"model\.target_modules=.*Use all-linear"):
        LoraAdapters(tiny_model(tied=False), LoraSpec(rank=2, target_modules=targets))


def test_merging_is_the_formula() -> None:
    weight, down, up = torch.randn(3, 4), torch.randn(2, 4), torch.randn(3, 2)
    expected = torch.tensor(
        [[float(weight[i, j] + 0.5 * sum(up[i, r] * down[r, j] for r in range(2))) for j in range(4)] for i in range(3)]
    )
    torch.testing.assert_close(merge(weight, down, up, 0.5), expected)
    assert merge(weight.bfloat16(), down, up, 0.5).dtype == torch.float32


def test_files_are_named_and_described_as_peft_s(tmp_path: Path) -> None:
    pairs = {"a.q.base_layer.weight": AdapterPair("a.q.lora_A.default.weight", "a.q.lora_B.default.weight", 1.0)}
    assert dict(peft_names(pairs)) == {
        "a.q.lora_A.default.weight": "base_model.model.a.q.lora_A.weight",
        "a.q.lora_B.default.weight": "base_model.model.a.q.lora_B.weight",
    }
    LoraAdapters(tiny_model(), LoraSpec(rank=2, alpha=6)).write_config(str(tmp_path), "org/base")
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (written["r"], written["lora_alpha"], written["base_model_name_or_path"]) == (2, 6, "org/base")
    assert {name.rpartition(".")[2] for name in written["target_modules"]} == PROJECTIONS
