# SPDX-License-Identifier: Apache-2.0
"""A Qwen2 decoder of Megatron-core modules: packed tokens in, log-probs at the targets out. It knows no optimizer.

Only the last pipeline stage has a head, and the head never makes whole logits. Attention, norm, rotary angles and head
are ours; the parallel linear layers, the embedding, the blocks and their recomputation are Megatron's.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import nn

from verl.algorithms.log_probs import ChunkedHead
from verl.engines.attention import SequenceLayout
from verl.engines.base import EngineSpec, HeadOutputs, HeadRequest, MegatronSpec
from verl.engines.megatron.attention import PackedCoreAttention, PackedLayoutParams
from verl.engines.megatron.weights import Qwen2Shape, split_dim
from verl.engines.packing import PackedSequences
from verl.engines.vocab_parallel import RankVocabSlice


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in float32 as transformers does.

    Args:
        config: Gives the weight's dtype, and says whether its gradient has to be summed over sequence-parallel ranks.
        hidden_size: Width.
        eps: Added to the mean square.
        **_: What else Megatron passes to a norm.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6, **_: Any) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        # Megatron's mark on weights whose inputs are split along the sequence.
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Normalise the last dimension."""
        wide = hidden.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(hidden.dtype)


class PackedGPT(GPTModel):
    """Megatron's decoder, read at the targets of packed sequences.

    Args:
        config: From `transformer_config`.
        shape: Sizes of the model.
        head_chunk_size: Tokens whose logits exist at the same time.
    """

    def __init__(self, config: TransformerConfig, shape: Qwen2Shape, head_chunk_size: int) -> None:
        super().__init__(
            config,
            _block_spec(config),
            vocab_size=shape.padded_vocab(config.tensor_model_parallel_size),
            max_sequence_length=0,  # positions are not learned: nothing has this length
            pre_process=parallel_state.is_pipeline_first_stage(),
            post_process=parallel_state.is_pipeline_last_stage(),
            share_embeddings_and_output_weights=shape.is_tied,
            position_embedding_type="none",
            parallel_output=True,
        )
        self.shape = shape
        self.head_chunk_size = head_chunk_size
        for name, parameter in self.named_parameters():
            dim = split_dim(name)
            # Megatron marks split weights where it fills them, and these are filled elsewhere. Without the mark the
            # gradient norm would count one rank's part of them only.
            if dim is not None and not getattr(parameter, "tensor_model_parallel", False):
                set_tensor_model_parallel_attributes(parameter, is_parallel=True, dim=dim, stride=1)

    def forward(self, packed: PackedSequences) -> torch.Tensor:
        """Run this stage's layers.

        Args:
            packed: On this rank's device; with sequence parallelism a multiple of its ranks long.

        Returns:
            [T, 1, H] (or this rank's part of T), after the final norm on the last stage.
        """
        embedded = None  # later stages were handed their input by the schedule
        if self.pre_process:
            embedded = self.embedding(input_ids=packed.input_ids[None], position_ids=packed.position_ids[None])
        hidden: torch.Tensor = self.decoder(
            hidden_states=embedded,
            attention_mask=None,
            rotary_pos_emb=rotary_angles(packed.position_ids, self.shape),
            packed_seq_params=PackedLayoutParams(qkv_format="sbhd", layout=SequenceLayout.of(packed)),
        )
        return hidden

    def outputs(self, hidden: torch.Tensor, packed: PackedSequences, request: HeadRequest) -> HeadOutputs:
        """Run the head; on the last stage only, by all its tensor-parallel ranks.

        Args:
            hidden: From `forward`.
            packed: The same.
            request: What is wanted.
        """
        if self.config.sequence_parallel:
            hidden = gather_from_sequence_parallel_region(hidden, tensor_parallel_output_grad=True)
        else:
            hidden = copy_to_tensor_model_parallel_region(hidden)
        weight = self.shared_embedding_or_output_weight() if self.shape.is_tied else self.output_layer.weight
        rank, rows = parallel_state.get_tensor_model_parallel_rank(), weight.shape[0]
        size = max(0, min(rows, self.shape.vocab - rank * rows))
        vocab = RankVocabSlice(rank * rows, size, parallel_state.get_tensor_model_parallel_group())
        head = ChunkedHead(vocab, request.temperature, request.with_entropy, self.head_chunk_size)
        return HeadOutputs(*head(hidden[packed.logit_positions, 0], weight, packed.target_ids))


def rotary_angles(position_ids: torch.Tensor, shape: Qwen2Shape) -> torch.Tensor:
    """Compute the rotary angle of every token and channel, Megatron's way of handing them to the layers.

    Args:
        position_ids: [T] int64.
        shape: Head width and base.

    Returns:
        [T, 1, 1, D] float32.
    """
    channels = torch.arange(0, shape.head_dim, 2, dtype=torch.float32, device=position_ids.device)
    frequencies = 1.0 / shape.rope_theta ** (channels / shape.head_dim)
    angles = torch.outer(position_ids.float(), frequencies)
    return torch.cat([angles, angles], dim=-1)[:, None, None, :]


def transformer_config(spec: EngineSpec, shape: Qwen2Shape) -> TransformerConfig:
    """Say in Megatron's words what is to be built, on the host and unfilled.

    Args:
        spec: The engine.
        shape: Sizes of the model.

    Returns:
        The config. Gradients are summed, never averaged: `calculate_per_token_loss` switches Megatron's division by
        micro-batches and data-parallel ranks off.
    """
    dtype, layout = getattr(torch, spec.precision.compute), spec.megatron
    return TransformerConfig(
        num_layers=shape.layers,
        hidden_size=shape.hidden,
        num_attention_heads=shape.heads,
        num_query_groups=shape.kv_heads,
        kv_channels=shape.head_dim,
        ffn_hidden_size=shape.mlp,
        normalization="RMSNorm",
        layernorm_epsilon=shape.norm_eps,
        gated_linear_unit=True,
        activation_func=F.silu,
        add_bias_linear=False,
        add_qkv_bias=True,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        use_cpu_initialization=True,
        perform_initialization=False,
        tensor_model_parallel_size=layout.tensor_parallel,
        pipeline_model_parallel_size=layout.pipeline_parallel,
        sequence_parallel=layout.sequence_parallel and layout.tensor_parallel > 1,
        variable_seq_lengths=True,
        moe_token_dispatcher_type="alltoall",  # there is none, but the check of variable lengths reads it
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        calculate_per_token_loss=True,
        # Fusions of Apex and Transformer Engine, which are not required.
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        apply_rope_fusion=False,
        gradient_accumulation_fusion=False,
        persist_layer_norm=False,
        **_recomputation(layout, spec.gradient_checkpointing and spec.optimizer is not None),
    )


def _recomputation(layout: MegatronSpec, is_on: bool) -> dict[str, Any]:
    if not is_on:
        return {}
    if layout.recompute_granularity == "selective":
        return {"recompute_granularity": "selective", "recompute_modules": ["core_attn"]}
    return {
        "recompute_granularity": layout.recompute_granularity,
        "recompute_method": layout.recompute_method,
        "recompute_num_layers": layout.recompute_num_layers,
    }


def _block_spec(config: TransformerConfig) -> TransformerBlockSubmodules:
    layer = get_gpt_layer_local_spec(normalization="RMSNorm")
    layer.submodules.input_layernorm = RMSNorm
    layer.submodules.pre_mlp_layernorm = RMSNorm
    layer.submodules.self_attention.submodules.core_attention = PackedCoreAttention
    return TransformerBlockSubmodules(layer_specs=[layer] * get_num_layers_to_build(config), layer_norm=RMSNorm)
