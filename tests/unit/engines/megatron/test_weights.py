# SPDX-License-Identifier: Apache-2.0
"""HF names to Megatron's and back, whole and in parts: exact."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig

from tests.helpers.tiny_models import VOCAB_SIZE, tiny_config, tiny_model
from verl.engines.megatron import weights as naming
from verl.engines.megatron.weights import EMBEDDING, OUTPUT, Qwen2Shape
from verl.utils.errors import UserError


def shape_of(**changes: object) -> Qwen2Shape:
    return Qwen2Shape.of(tiny_config(**changes), "folder", "model.path")  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("tied", [True, False])
def test_there_and_back_over_any_number_of_ranks(size: int, tied: bool) -> None:
    source, shape = dict(tiny_model(tied).named_parameters()), shape_of(tied=tied)
    back: dict[str, torch.Tensor] = {}
    for name in shape.parameters():
        whole = naming.merge(name, source, shape, size)
        assert tuple(whole.shape) == shape.full_shape(name, size)
        parts = [naming.split(name, whole, size, rank) for rank in range(size)]
        assert len({part.shape for part in parts}) == 1
        back |= dict(naming.separate(name, naming.join(name, parts), shape))
    assert back.keys() == source.keys()
    assert all(torch.equal(back[name], weight) for name, weight in source.items())


def test_queries_stand_beside_their_keys_and_values() -> None:
    shape = shape_of()
    hidden, width = shape.hidden, shape.head_dim
    source = {
        f"model.layers.0.self_attn.{kind}_proj.weight": torch.arange(float(heads)).repeat_interleave(width)[:, None]
        + offset
        + torch.zeros(1, hidden)
        for kind, heads, offset in (("q", shape.heads, 0), ("k", shape.kv_heads, 10), ("v", shape.kv_heads, 20))
    }
    merged = naming.merge("decoder.layers.0.self_attention.linear_qkv.weight", source, shape, 1)
    assert merged[::width, 0].tolist() == [0, 1, 10, 20, 2, 3, 11, 21]


def test_the_vocabulary_is_padded_with_zeros_and_cut_again() -> None:
    shape, source = shape_of(), {"model.embed_tokens.weight": torch.ones(VOCAB_SIZE, 32)}
    assert shape.padded_vocab(2) == VOCAB_SIZE + 1
    whole = naming.merge(EMBEDDING, source, shape, 2)
    assert (whole[VOCAB_SIZE:] == 0).all()
    assert naming.separate(EMBEDDING, whole, shape)[0][1].shape == (VOCAB_SIZE, 32)


def test_a_tied_output_layer_is_no_weight_of_its_own() -> None:
    assert OUTPUT not in shape_of(tied=True).parameters()
    assert shape_of(tied=False).parameters()[-1] == OUTPUT


def test_layers_are_counted_over_all_stages() -> None:
    name = "decoder.layers.1.mlp.linear_fc2.weight"
    assert naming.shift_layer(name, 4) == "decoder.layers.5.mlp.linear_fc2.weight"
    assert naming.shift_layer(EMBEDDING, 4) == EMBEDDING
    assert naming.layer_of(name) == 1
    assert naming.layer_of(OUTPUT) is None


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (LlamaConfig(), "holds a 'llama' model; strategy=megatron trains Qwen2"),
        (
            tiny_config(rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}),
            "scales rotary positions by 'linear'",
        ),
        (tiny_config(use_sliding_window=True, sliding_window=8, max_window_layers=0), "sliding-window attention"),
    ],
)
def test_models_that_are_computed_otherwise_are_refused(config: object, said: str) -> None:
    with pytest.raises(UserError, match="strategy=fsdp2") as caught:
        Qwen2Shape.of(config, "folder", "actor_rollout_ref.model.path")
    assert said in str(caught.value)


def test_rotary_base_is_read() -> None:
    assert shape_of(rope_parameters={"rope_type": "default", "rope_theta": 1e6}).rope_theta == 1e6
