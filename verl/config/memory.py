# SPDX-License-Identifier: Apache-2.0
"""Rough memory of one device, from model shape and configuration. Arithmetic only: measures nothing.

Good to about a quarter for models whose layers dominate; what the libraries keep for themselves is left out.
"""

from __future__ import annotations

from dataclasses import dataclass

from verl.config.batch_plan import BatchPlan
from verl.config.engine import FSDPConfig
from verl.config.model import ModelConfig
from verl.config.model_shape import ModelShape
from verl.config.reward import RewardModelConfig
from verl.config.root import ActorRolloutRefConfig, PPOTrainerConfig

BYTES_OF = {"float32": 4, "bfloat16": 2, "float16": 2}
LOGIT_CHUNK_TOKENS = 1024
"""Tokens whose logits exist at the same time while log-probs are computed."""


@dataclass(frozen=True)
class MemoryItem:
    """One thing that takes memory on a device.

    Example:
        `MemoryItem("weights", 2 * 2**30, "float32, 1/6 of them")`
    """

    name: str
    """What it is."""
    num_bytes: float
    """Size on one device."""
    note: str
    """How it comes about."""


def training_memory(config: PPOTrainerConfig, shape: ModelShape) -> list[MemoryItem]:
    """Estimate a policy rank while it updates.

    Args:
        config: A checked root.
        shape: The policy's shape.

    Returns:
        Items whose sum is the estimate.
    """
    policy, plan = config.actor_rollout_ref, BatchPlan.from_config(config)
    if policy.actor.engine_name == "megatron":
        return _megatron_memory(config, shape, plan)
    sharding = policy.actor.fsdp_config
    shards = plan.policy_ranks if sharding.fsdp_size == -1 else sharding.fsdp_size
    computed = BYTES_OF[sharding.mixed_precision.param_dtype]
    items = _weights_and_optimizer(policy, shape, shards)
    items.append(MemoryItem("gathered layers", 2 * shape.layer_params * computed, "one in use, one on its way"))
    tokens = _tokens_in_micro_batch(plan) / policy.actor.ulysses_sequence_parallel_size
    items += _activations(tokens, policy.model, shape, computed)
    if config.needs_reference and not policy.model.lora_rank:
        items.append(_reference(policy.ref.fsdp_config, plan.policy_ranks, shape))
    return items


def _weights_and_optimizer(policy: ActorRolloutRefConfig, shape: ModelShape, shards: int) -> list[MemoryItem]:
    """A rank's shards; beside adapters the weights are frozen, and stored as they are computed with."""
    sharding, lora_rank = policy.actor.fsdp_config, policy.model.lora_rank
    dtype = sharding.mixed_precision.param_dtype if lora_rank else sharding.model_dtype
    trained = shape.adapter_params(lora_rank, policy.model.target_modules) if lora_rank else shape.num_params
    share = f"{dtype}, 1/{shards} of {shape.num_params / 1e9:.2f}e9"
    own = trained * BYTES_OF[sharding.model_dtype] / shards
    moments = "two per weight" + _offloaded(sharding.optimizer_offload)
    items = [MemoryItem("policy weights", shape.num_params * BYTES_OF[dtype] / shards, share)]
    if lora_rank:
        items.append(MemoryItem("adapters", own, f"rank {lora_rank}, {trained / 1e6:.1f}e6 parameters, trained alone"))
        share = "of adapters"
    return [*items, MemoryItem("gradients", own, share), MemoryItem("AdamW moments", 2 * own, moments)]


def _megatron_memory(config: PPOTrainerConfig, shape: ModelShape, plan: BatchPlan) -> list[MemoryItem]:
    """A rank of a Megatron model: its part of weights and gradients, and of the optimizer a part of that part."""
    policy, megatron = config.actor_rollout_ref, config.actor_rollout_ref.actor.megatron
    tensor, pipeline = megatron.tensor_model_parallel_size, megatron.pipeline_model_parallel_size
    own = shape.num_params / (tensor * pipeline)
    copies = plan.data_parallel_ranks if megatron.use_distributed_optimizer else 1
    size = BYTES_OF[megatron.dtype]
    share = f"{megatron.dtype}, 1/{tensor * pipeline} of {shape.num_params / 1e9:.2f}e9"
    per_weight = 2 * 4 + (4 if size < 4 else 0)
    optimizer = f"{per_weight} bytes per weight, over {copies} ranks" + _offloaded(megatron.optimizer_offload)
    items = [
        MemoryItem("policy weights", own * size, share + _offloaded(megatron.param_offload)),
        MemoryItem("gradients", own * 4, "float32" + _offloaded(megatron.grad_offload)),
        MemoryItem("AdamW and 32-bit weights", own * per_weight / copies, optimizer),
    ]
    tokens = _tokens_in_micro_batch(plan) / tensor
    # 1F1B keeps as many micro-batches in flight as there are stages, each with its share of the layers.
    items += _activations(tokens, policy.model, shape, size)
    if config.needs_reference:
        ref = policy.ref.megatron
        note = f"{ref.dtype}, 1/{tensor * pipeline} of them" + _offloaded(ref.param_offload)
        items.append(MemoryItem("reference weights", own * BYTES_OF[ref.dtype], note))
    return items


def _activations(tokens: float, model: ModelConfig, shape: ModelShape, computed: int) -> list[MemoryItem]:
    checkpointed = model.enable_gradient_checkpointing
    layers_kept = 1 if checkpointed else shape.layers
    inside = layers_kept * (8 * shape.hidden + 4 * shape.mlp + 2 * shape.head_dim * (shape.heads + shape.kv_heads))
    borders = shape.layers * shape.hidden if checkpointed and not model.enable_activation_offload else 0
    note = f"{tokens:.0f} tokens, gradient checkpointing {'on' if checkpointed else 'off'}"
    note += ", layers' inputs in CPU memory" if model.enable_activation_offload else ""
    chunk = min(tokens, LOGIT_CHUNK_TOKENS)
    return [
        MemoryItem("activations", tokens * (inside + borders) * computed, note),
        MemoryItem("logits", 2 * chunk * shape.vocab * 4, f"chunks of {chunk:.0f} tokens, float32"),
    ]


def _reference(sharding: FSDPConfig, ranks: int, shape: ModelShape) -> MemoryItem:
    shards = ranks if sharding.fsdp_size == -1 else sharding.fsdp_size
    note = f"{sharding.model_dtype}, 1/{shards} of them" + _offloaded(sharding.param_offload)
    return MemoryItem("reference weights", shape.num_params * BYTES_OF[sharding.model_dtype] / shards, note)


def _tokens_in_micro_batch(plan: BatchPlan) -> int:
    limits = [plan.mini_batch_sequences_per_rank * plan.max_sequence_len]
    if plan.actor.max_tokens is not None:
        limits.append(plan.actor.max_tokens)
    if plan.actor.max_sequences is not None:
        limits.append(plan.actor.max_sequences * plan.max_sequence_len)
    return min(limits)


def _offloaded(is_on: bool) -> str:
    return ", in CPU memory while idle" if is_on else ""


def rollout_memory(config: PPOTrainerConfig, shape: ModelShape) -> list[MemoryItem]:
    """Estimate one device of a rollout server.

    Args:
        config: A checked root.
        shape: The policy's shape.

    Returns:
        Weights, and the KV cache that would hold all sequences of a step (of those sampled at once, when the rollout
        runs ahead) at full length.
    """
    rollout, plan = config.actor_rollout_ref.rollout, BatchPlan.from_config(config)
    tp, size = rollout.tensor_model_parallel_size, BYTES_OF[rollout.dtype]
    batches = max(1, config.trainer.max_staleness)
    at_once = min(batches * plan.sequences_per_server, rollout.max_num_seqs)
    cache = at_once * plan.max_sequence_len * shape.kv_bytes_per_token(size) / tp
    return [
        MemoryItem("rollout weights", shape.num_params * size / tp, f"{rollout.dtype}, TP {tp}"),
        MemoryItem("KV cache wanted", cache, f"{at_once} responses of full length; vLLM takes what it is given"),
    ]


def prm_memory(prm: RewardModelConfig, shape: ModelShape) -> list[MemoryItem]:
    """Estimate one device of a PRM replica.

    Args:
        prm: Section `reward_model`.
        shape: The PRM's shape (its small head is left out).

    Returns:
        Weights.
    """
    tp = prm.tensor_model_parallel_size
    return [MemoryItem("PRM weights", shape.num_params * BYTES_OF[prm.dtype] / tp, f"{prm.dtype}, TP {tp}")]
