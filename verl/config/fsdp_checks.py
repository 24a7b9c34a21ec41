# SPDX-License-Identifier: Apache-2.0
"""Checks of what the FSDP2 engine adds to data parallelism: shared sequences, adapters, offloaded activations.

Opens no file and imports no engine.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from verl.config.engine import FSDPConfig
from verl.config.model import ModelConfig
from verl.config.model_shape import ModelShape
from verl.config.problems import Problem

if TYPE_CHECKING:
    from verl.config.root import ActorRolloutRefConfig, PPOTrainerConfig

_ACTOR = "actor_rollout_ref.actor"
_REF = "actor_rollout_ref.ref"
_MODEL = "actor_rollout_ref.model"
_ULYSSES = "ulysses_sequence_parallel_size"
_DEVICES = ("trainer.n_gpus_per_node", "trainer.nnodes")


def fsdp_problems(config: PPOTrainerConfig) -> Iterator[Problem]:
    """Check a run's FSDP2 features.

    Args:
        config: The root.

    Yields:
        Every mistake found.
    """
    policy = config.actor_rollout_ref
    is_megatron = policy.actor.engine_name == "megatron"
    yield from training_problems(policy.model, _MODEL)
    if is_megatron:
        yield from _fsdp_only(policy)
        return
    yield from precision_problems(policy.actor.fsdp_config, f"{_ACTOR}.fsdp_config")
    yield from _sequence_parallel(config)
    own, actors = policy.ref.ulysses_sequence_parallel_size, policy.actor.ulysses_sequence_parallel_size
    if policy.model.lora_rank and own not in (None, actors):
        allowed = f"with lora_rank the reference is the actor without its adapters, on the same ranks: {actors}"
        yield Problem(f"{_REF}.{_ULYSSES}", own, allowed, "Leave it out", (f"{_MODEL}.lora_rank",))


def training_problems(model: ModelConfig, section: str) -> Iterator[Problem]:
    """Check how a model is trained.

    Args:
        model: Its section.
        section: Name of the section.

    Yields:
        Every mistake found.
    """
    if model.lora_rank and not model.target_modules:
        mend = f"Leave it out for all-linear, or set {section}.lora_rank=0"
        yield Problem(f"{section}.target_modules", [], "must name layers that get adapters", mend)
    if model.enable_activation_offload and not model.enable_gradient_checkpointing:
        key, other = f"{section}.enable_activation_offload", f"{section}.enable_gradient_checkpointing"
        allowed = "offloads what gradient checkpointing keeps, and that is off"
        yield Problem(key, True, allowed, f"Set {other}=True", (other,))


def precision_problems(fsdp: FSDPConfig, section: str) -> Iterator[Problem]:
    """Check the dtypes of a trained model.

    Args:
        fsdp: Its section.
        section: Name of the section.

    Yields:
        Every mistake found.
    """
    mixed = fsdp.mixed_precision
    names = ("model_dtype", "mixed_precision.param_dtype", "mixed_precision.reduce_dtype")
    for name, dtype in zip(names, (fsdp.model_dtype, mixed.param_dtype, mixed.reduce_dtype), strict=True):
        if dtype == "float16":
            allowed = "would need loss scaling, which is not built"
            yield Problem(f"{section}.{name}", dtype, allowed, f"Set {section}.{name} to bfloat16 or float32")


def _fsdp_only(policy: ActorRolloutRefConfig) -> Iterator[Problem]:
    allowed, model = "is not built for strategy=megatron", policy.model
    if policy.actor.use_torch_compile:
        mend = f"Set it to False, or {_ACTOR}.strategy=fsdp2"
        yield Problem(f"{_ACTOR}.use_torch_compile", True, allowed, mend, (f"{_ACTOR}.strategy",))
    if model.lora_rank:
        mend = f"Set it to 0, or {_ACTOR}.strategy=fsdp2"
        yield Problem(f"{_MODEL}.lora_rank", model.lora_rank, allowed, mend, (f"{_ACTOR}.strategy",))
    if model.enable_activation_offload:
        mend = f"Set it to False, or {_ACTOR}.strategy=fsdp2"
        yield Problem(f"{_MODEL}.enable_activation_offload", True, allowed, mend, (f"{_ACTOR}.strategy",))


def _sequence_parallel(config: PPOTrainerConfig) -> Iterator[Problem]:
    policy, ranks = config.actor_rollout_ref, config.trainer.num_devices
    actors = policy.actor.ulysses_sequence_parallel_size
    own = policy.ref.ulysses_sequence_parallel_size or actors
    for section, size in ((_ACTOR, actors), (_REF, own))[: 1 if own == actors else 2]:
        if ranks % size:
            allowed = f"must divide the {ranks} policy ranks (trainer.nnodes x n_gpus_per_node)"
            yield Problem(f"{section}.{_ULYSSES}", size, allowed, f"Set it to a divisor of {ranks}", _DEVICES)
    sequences = config.data.train_batch_size * policy.rollout.n
    if config.needs_reference and not ranks % own and sequences % (ranks // own) and not sequences % (ranks // actors):
        allowed = f"{sequences} sequences per step must be a multiple of its {ranks // own} data-parallel ranks"
        yield Problem(f"{_REF}.{_ULYSSES}", own, allowed, "Leave it out", ("data.train_batch_size",))


def fsdp_model_problems(policy: ActorRolloutRefConfig, shape: ModelShape) -> Iterator[Problem]:
    """Check a policy's model against the ranks that share its sequences.

    Args:
        policy: Section `actor_rollout_ref`.
        shape: Of the policy's model.

    Yields:
        Every mistake found.
    """
    actors = policy.actor.ulysses_sequence_parallel_size
    own = policy.ref.ulysses_sequence_parallel_size or actors
    for section, size in ((_ACTOR, actors), (_REF, own))[: 1 if own == actors else 2]:
        yield from head_problems(f"{section}.{_ULYSSES}", size, shape)


def head_problems(key: str, size: int, shape: ModelShape) -> Iterator[Problem]:
    """Check that ranks or devices can share a model's heads.

    Args:
        key: Says how many share them.
        size: Its value.
        shape: Of the model.

    Yields:
        The mistake, if it is one.
    """
    if shape.heads % size:
        allowed = f"must divide the model's {shape.heads} attention heads"
        yield Problem(key, size, allowed, f"Set it to a divisor of {shape.heads}")
