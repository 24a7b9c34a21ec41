# SPDX-License-Identifier: Apache-2.0
"""Checks of `strategy=megatron`: what is installed, built and divisible. Opens no file and imports no engine."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import TYPE_CHECKING

from verl.config.model_shape import ModelShape
from verl.config.problems import Problem

if TYPE_CHECKING:
    from verl.config.root import ActorRolloutRefConfig, PPOTrainerConfig

_ACTOR = "actor_rollout_ref.actor"
_REF = "actor_rollout_ref.ref"
_TENSOR, _PIPELINE = "tensor_model_parallel_size", "pipeline_model_parallel_size"


def megatron_problems(config: PPOTrainerConfig) -> Iterator[Problem]:
    """Check a run's Megatron sections; other strategies have none.

    Args:
        config: The root.

    Yields:
        Every mistake found.
    """
    policy = config.actor_rollout_ref
    if policy.actor.engine_name != "megatron":
        return
    yield from _installed()
    yield from _not_built(policy)
    yield from _ranks(policy, config.trainer.num_devices)
    for section, megatron in ((_ACTOR, policy.actor.megatron), (_REF, policy.ref.megatron)):
        if megatron.dtype == "float16":
            key = f"{section}.megatron.dtype"
            yield Problem(key, "float16", "would need loss scaling, which is not built", f"Set {key}=bfloat16")


def _installed() -> Iterator[Problem]:
    if importlib.util.find_spec("megatron") is None or importlib.util.find_spec("megatron.core") is None:
        allowed = "needs the package megatron-core, which is not installed here"
        mend = "Run: pip install --no-deps -r requirements/megatron.txt"
        yield Problem(f"{_ACTOR}.strategy", "megatron", allowed, mend)


def _not_built(policy: ActorRolloutRefConfig) -> Iterator[Problem]:
    megatron = policy.actor.megatron
    if megatron.virtual_pipeline_model_parallel_size is not None:
        key = f"{_ACTOR}.megatron.virtual_pipeline_model_parallel_size"
        allowed = "interleaved pipelines are not built; only null is accepted"
        yield Problem(key, megatron.virtual_pipeline_model_parallel_size, allowed, f"Leave out {key}")
    sharing = "is not built for strategy=megatron; only 1 is accepted"
    mend = f"Leave it out; long sequences are shared by strategy=fsdp2 with {_ACTOR}.ulysses_sequence_parallel_size"
    if megatron.context_parallel_size > 1:
        yield Problem(f"{_ACTOR}.megatron.context_parallel_size", megatron.context_parallel_size, sharing, mend)
    for section, size in (
        (_ACTOR, policy.actor.ulysses_sequence_parallel_size),
        (_REF, policy.ref.ulysses_sequence_parallel_size or 1),
    ):
        if size > 1:
            mend = f"Use {_ACTOR}.megatron.{_TENSOR} with sequence_parallel, or strategy=fsdp2"
            yield Problem(f"{section}.ulysses_sequence_parallel_size", size, sharing, mend)


def _ranks(policy: ActorRolloutRefConfig, num_ranks: int) -> Iterator[Problem]:
    megatron = policy.actor.megatron
    shared = megatron.tensor_model_parallel_size * megatron.pipeline_model_parallel_size
    if num_ranks % shared:
        key, other = f"{_ACTOR}.megatron.{_TENSOR}", f"{_ACTOR}.megatron.{_PIPELINE}"
        allowed = (
            f"times {_PIPELINE}={megatron.pipeline_model_parallel_size} must divide the {num_ranks} policy ranks "
            "(trainer.nnodes x n_gpus_per_node)"
        )
        others = (other, "trainer.n_gpus_per_node", "trainer.nnodes")
        yield Problem(
            key, megatron.tensor_model_parallel_size, allowed, f"Choose sizes whose product divides {num_ranks}", others
        )
    for name in (_TENSOR, _PIPELINE):
        own, actors = getattr(policy.ref.megatron, name), getattr(megatron, name)
        if own not in (None, actors):
            allowed = f"the reference stands on the actor's ranks in the actor's sizes, here {actors}"
            yield Problem(f"{_REF}.megatron.{name}", own, allowed, "Leave it out", (f"{_ACTOR}.megatron.{name}",))


def megatron_model_problems(policy: ActorRolloutRefConfig, shape: ModelShape) -> Iterator[Problem]:
    """Check a policy's model against the Megatron section; other strategies have nothing to check.

    Args:
        policy: Section `actor_rollout_ref`.
        shape: Of the policy's model.

    Yields:
        Every mistake found.
    """
    if policy.actor.engine_name != "megatron":
        return
    if shape.family != "qwen2":
        allowed = f"holds a {shape.family!r} model; strategy=megatron trains Qwen2 (and Qwen2.5) models"
        yield Problem("actor_rollout_ref.model.path", policy.model.path, allowed, f"Set {_ACTOR}.strategy=fsdp2")
    megatron = policy.actor.megatron
    divided = (
        (_TENSOR, shape.heads, "attention heads"),
        (_TENSOR, shape.kv_heads, "key-value heads"),
        (_TENSOR, shape.mlp, "MLP channels"),
        (_PIPELINE, shape.layers, "layers"),
    )
    for name, count, what in divided:
        size = getattr(megatron, name)
        if count % size:
            allowed = f"must divide the model's {count} {what}"
            yield Problem(f"{_ACTOR}.megatron.{name}", size, allowed, f"Set it to a divisor of {count}")
