# SPDX-License-Identifier: Apache-2.0
"""The Megatron sections arrive in the engines' specs; the chosen engine's section decides what is offloaded."""

from __future__ import annotations

import pytest

from tests.helpers.configs import build
from verl.engines.base import MegatronSpec, PrecisionSpec
from verl.workers.engine_specs import IdleOffload, actor_engine_spec, idle_offload, ref_engine_spec

ACTOR, REF = "actor_rollout_ref.actor", "actor_rollout_ref.ref"
CHOSEN = f"{ACTOR}.strategy=megatron"


def test_every_key_of_the_section_arrives() -> None:
    config = build(
        CHOSEN,
        f"{ACTOR}.megatron.tensor_model_parallel_size=2",
        f"{ACTOR}.megatron.pipeline_model_parallel_size=4",
        f"{ACTOR}.megatron.sequence_parallel=False",
        f"{ACTOR}.megatron.use_distributed_optimizer=False",
        f"{ACTOR}.megatron.dtype=float32",
        f"{ACTOR}.megatron.grad_offload=True",
        f"{ACTOR}.megatron.override_transformer_config.recompute_granularity=selective",
        f"{ACTOR}.megatron.override_transformer_config.recompute_method=block",
        f"{ACTOR}.megatron.override_transformer_config.recompute_num_layers=3",
    )
    layout = MegatronSpec(2, 4, False, False, "selective", "block", 3, True)
    actor, ref = actor_engine_spec(config, "cpu", 10), ref_engine_spec(config, "cpu")
    assert (actor.strategy, actor.megatron, actor.precision) == ("megatron", layout, PrecisionSpec(compute="float32"))
    # The reference stands on the same ranks; nothing updates its weights, so they are stored as they are computed with.
    assert (ref.strategy, ref.megatron, ref.optimizer) == ("megatron", layout, None)
    assert ref.precision == PrecisionSpec("bfloat16", "bfloat16")


def test_the_references_dtype_is_its_own() -> None:
    config = build(CHOSEN, f"{REF}.megatron.dtype=float32")
    assert ref_engine_spec(config, "cpu").precision.compute == "float32"
    assert actor_engine_spec(config, "cpu", 1).precision.compute == "bfloat16"


@pytest.mark.parametrize(
    ("overrides", "actor", "ref"),
    [
        ([], IdleOffload(False), IdleOffload(False)),
        ([f"{ACTOR}.fsdp_config.param_offload=True"], IdleOffload(True), IdleOffload(False)),
        ([f"{ACTOR}.fsdp_config.optimizer_offload=True"], IdleOffload(False, True), IdleOffload(False)),
        ([f"{REF}.fsdp_config.param_offload=True"], IdleOffload(False), IdleOffload(True)),
        ([f"{ACTOR}.megatron.param_offload=True"], IdleOffload(False), IdleOffload(False)),
        ([CHOSEN, f"{ACTOR}.fsdp_config.param_offload=True"], IdleOffload(False), IdleOffload(False)),
        ([CHOSEN, f"{ACTOR}.megatron.param_offload=True"], IdleOffload(True), IdleOffload(False)),
        ([CHOSEN, f"{ACTOR}.megatron.optimizer_offload=True"], IdleOffload(False, True), IdleOffload(False)),
        ([CHOSEN, f"{ACTOR}.megatron.grad_offload=True"], IdleOffload(False, False, True), IdleOffload(False)),
        ([CHOSEN, f"{REF}.megatron.param_offload=True"], IdleOffload(False), IdleOffload(True)),
    ],
)
def test_idle_engines_give_back_what_their_own_section_says(
    overrides: list[str], actor: IdleOffload, ref: IdleOffload
) -> None:
    config = build(*overrides)
    assert (idle_offload(config, is_ref=False), idle_offload(config, is_ref=True)) == (actor, ref)
    assert actor.is_on == (actor != IdleOffload(False))
