# SPDX-License-Identifier: Apache-2.0
"""The parts of the Megatron model that are ours, against transformers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.transformer_config import TransformerConfig
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm, Qwen2RotaryEmbedding

from tests.helpers.tiny_models import random_padded, tiny_config
from verl.engines.adapters import LoraSpec
from verl.engines.attention import SequenceLayout, attend_padded
from verl.engines.base import EngineSpec, MegatronSpec, OptimizerSpec, PrecisionSpec
from verl.engines.megatron.attention import PackedCoreAttention, PackedLayoutParams
from verl.engines.megatron.engine import MegatronEngine
from verl.engines.megatron.model import RMSNorm, rotary_angles, transformer_config
from verl.engines.megatron.parallel import check_model, check_world
from verl.engines.megatron.transport import stage_of
from verl.engines.megatron.weights import EMBEDDING, FINAL_NORM, OUTPUT, Qwen2Shape
from verl.utils.errors import UserError

SHAPE = Qwen2Shape.of(tiny_config(), "folder", "model.path")
SPEC = EngineSpec("folder", OptimizerSpec(), "megatron", "cpu", precision=PrecisionSpec(compute="float32"))


def test_norm_equals_transformers() -> None:
    config = TransformerConfig(num_layers=1, hidden_size=8, num_attention_heads=1)
    ours, theirs = RMSNorm(config, 8, eps=1e-6), Qwen2RMSNorm(8, eps=1e-6)
    weight, hidden = torch.randn(8), torch.randn(3, 1, 8)
    for norm in (ours, theirs):
        norm.weight.data.copy_(weight)
    assert torch.equal(ours(hidden), theirs(hidden))


def test_rotary_angles_equal_transformers() -> None:
    positions = torch.tensor([0, 1, 2, 0, 1, 77])
    cosines, sines = Qwen2RotaryEmbedding(tiny_config())(torch.zeros(1), positions[None])
    angles = rotary_angles(positions, SHAPE)[:, 0, 0]
    torch.testing.assert_close(angles.cos(), cosines[0])
    torch.testing.assert_close(angles.sin(), sines[0])


def test_core_attention_is_the_engines_own() -> None:
    packed = random_padded([2, 4], [3, 1]).pack([0, 1])
    layout, total = SequenceLayout.of(packed), packed.num_tokens
    query, key, value = (torch.randn(total, 1, heads, 8) for heads in (4, 2, 2))
    attention = PackedCoreAttention(None, 1, "causal", attention_type="self")
    params = PackedLayoutParams(qkv_format="sbhd", layout=layout)
    found = attention(query, key, value, None, attn_mask_type="causal", packed_seq_params=params)
    q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))
    wanted = attend_padded(q, k, v, layout, None, None)
    assert torch.equal(found, wanted[0].flatten(1)[:, None])


def test_core_attention_refuses_to_guess_the_layout() -> None:
    one = torch.zeros(1, 1, 1, 8)
    with pytest.raises(TypeError, match="PackedLayoutParams"):
        PackedCoreAttention(None, 1)(one, one, one, None, packed_seq_params=PackedSeqParams())


def test_recomputation_is_for_training_only() -> None:
    assert transformer_config(SPEC, SHAPE).recompute_granularity == "full"
    assert transformer_config(replace(SPEC, optimizer=None), SHAPE).recompute_granularity is None
    assert transformer_config(replace(SPEC, gradient_checkpointing=False), SHAPE).recompute_granularity is None
    block = MegatronSpec(recompute_method="block", recompute_num_layers=2)
    config = transformer_config(replace(SPEC, megatron=block), SHAPE)
    assert (config.recompute_method, config.recompute_num_layers) == ("block", 2)


def test_sequence_parallel_needs_tensor_parallel_ranks() -> None:
    assert not transformer_config(SPEC, SHAPE).sequence_parallel
    assert transformer_config(replace(SPEC, megatron=MegatronSpec(tensor_parallel=2)), SHAPE).sequence_parallel


def test_stages_share_the_layers_in_order() -> None:
    assert [stage_of(f"decoder.layers.{n}.input_layernorm.weight", SHAPE, 2) for n in range(2)] == [0, 1]
    assert [stage_of(name, SHAPE, 2) for name in (EMBEDDING, FINAL_NORM, OUTPUT)] == [0, 1, 1]


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (MegatronSpec(tensor_parallel=3), "must divide the model's 4 attention heads"),
        (MegatronSpec(tensor_parallel=4), "must divide the model's 2 key-value heads"),
        (MegatronSpec(pipeline_parallel=4), "must divide the model's 2 layers"),
    ],
)
def test_sizes_that_do_not_divide_the_model_are_refused(spec: MegatronSpec, said: str) -> None:
    with pytest.raises(UserError, match=said):
        check_model(spec, SHAPE)


def test_sizes_that_do_not_divide_the_ranks_are_refused() -> None:
    check_world(MegatronSpec(2, 2), 8)
    with pytest.raises(UserError, match="pipeline_model_parallel_size=2 must divide the 6 ranks"):
        check_world(MegatronSpec(2, 2), 6)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (replace(SPEC, head="classification"), "no classification heads. Train process-reward models with"),
        (replace(SPEC, precision=PrecisionSpec(compute="float16")), "megatron.dtype='float16'"),
        (replace(SPEC, precision=PrecisionSpec("bfloat16")), "kept in float32"),
        (replace(SPEC, lora=LoraSpec(rank=4)), "trains all weights, without adapters"),
        (replace(SPEC, activation_offload=True), "offloads no activations"),
    ],
)
def test_what_this_engine_does_not_do_is_refused_before_anything_is_loaded(spec: EngineSpec, said: str) -> None:
    with pytest.raises(UserError, match=said):
        MegatronEngine(spec)
