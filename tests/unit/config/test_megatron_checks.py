# SPDX-License-Identifier: Apache-2.0
"""Checks of strategy=megatron: refused with key and mend, and the nearest accepted neighbour accepted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.configs import build, fault
from verl.config.batch_plan import BatchPlan
from verl.config.megatron_checks import megatron_model_problems
from verl.config.memory import training_memory
from verl.config.model_shape import ModelShape, read_shape

ACTOR, REF = "actor_rollout_ref.actor", "actor_rollout_ref.ref"
MEGATRON = (f"{ACTOR}.strategy=megatron",)
TP, PP = f"{ACTOR}.megatron.tensor_model_parallel_size", f"{ACTOR}.megatron.pipeline_model_parallel_size"
SHAPE = ModelShape(
    hidden=1536,
    layers=28,
    heads=12,
    kv_heads=2,
    head_dim=128,
    mlp=8960,
    vocab=151936,
    tied=True,
    max_positions=32768,
    family="qwen2",
)


@pytest.mark.parametrize(
    ("refused", "said", "accepted"),
    [
        ([f"{TP}=3"], "must divide the 8 policy ranks (trainer.nnodes x n_gpus_per_node)", [f"{TP}=4"]),
        ([f"{TP}=4", f"{PP}=4"], "times pipeline_model_parallel_size=4 must divide the 8", [f"{TP}=4", f"{PP}=2"]),
        (
            [f"{ACTOR}.megatron.virtual_pipeline_model_parallel_size=2", f"{PP}=2"],
            "interleaved pipelines are not built; only null",
            [f"{PP}=2"],
        ),
        (
            [f"{ACTOR}.megatron.context_parallel_size=2"],
            "only 1 is accepted",
            [f"{ACTOR}.megatron.context_parallel_size=1"],
        ),
        ([f"{ACTOR}.megatron.dtype=float16"], "would need loss scaling", [f"{ACTOR}.megatron.dtype=float32"]),
        ([f"{REF}.megatron.dtype=float16"], f"{REF}.megatron.dtype", [f"{REF}.megatron.dtype=bfloat16"]),
        (
            [f"{TP}=2", f"{REF}.megatron.tensor_model_parallel_size=4"],
            "stands on the actor's ranks in the actor's sizes, here 2",
            [f"{TP}=2", f"{REF}.megatron.tensor_model_parallel_size=2"],
        ),
    ],
)
def test_refused_and_its_neighbour_accepted(refused: list[str], said: str, accepted: list[str]) -> None:
    assert said in fault(*MEGATRON, *refused)
    build(*MEGATRON, *accepted)


def test_ulysses_is_fsdp2s() -> None:
    assert "Use actor_rollout_ref.actor.megatron.tensor_model_parallel_size with sequence_parallel" in fault(
        *MEGATRON, f"{ACTOR}.ulysses_sequence_parallel_size=2"
    )


def test_other_strategies_do_not_read_the_section() -> None:
    config = build(f"{TP}=3")
    assert not list(megatron_model_problems(config.actor_rollout_ref, SHAPE))


def test_ranks_that_share_a_model_count_once() -> None:
    plan = BatchPlan.from_config(build(*MEGATRON, f"{TP}=2", f"{PP}=2"))
    assert (plan.policy_ranks, plan.data_parallel_ranks) == (8, 2)


@pytest.mark.parametrize(
    ("overrides", "changes", "said"),
    [
        ([f"{TP}=8"], {}, "must divide the model's 12 attention heads"),
        ([f"{TP}=4"], {}, "must divide the model's 2 key-value heads"),
        ([f"{PP}=8"], {}, "must divide the model's 28 layers"),
        ([], {"family": "llama"}, "holds a 'llama' model; strategy=megatron trains Qwen2 (and Qwen2.5) models"),
    ],
)
def test_sizes_that_do_not_divide_the_model(overrides: list[str], changes: dict[str, str], said: str) -> None:
    policy = build(*MEGATRON, *overrides).actor_rollout_ref
    shape = ModelShape(**(vars(SHAPE) | changes))
    problems = [problem.line() for problem in megatron_model_problems(policy, shape)]
    assert sum(said in line for line in problems) == 1
    assert not list(megatron_model_problems(build(*MEGATRON, f"{TP}=2", f"{PP}=4").actor_rollout_ref, SHAPE))


def test_the_family_is_read_from_the_models_config(tmp_path: Path) -> None:
    sizes = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 8,
        "vocab_size": 9,
    }
    (tmp_path / "config.json").write_text(json.dumps({**sizes, "model_type": "qwen2"}))
    shape, _ = read_shape(str(tmp_path))
    assert shape is not None
    assert shape.family == "qwen2"


def test_memory_is_divided_by_the_ranks_that_share_it() -> None:
    def sizes(*overrides: str) -> dict[str, float]:
        items = training_memory(build(*MEGATRON, *overrides), SHAPE)
        return {item.name: item.num_bytes for item in items}

    whole, shared = sizes(f"{ACTOR}.megatron.use_distributed_optimizer=False"), sizes(f"{TP}=2", f"{PP}=2")
    assert whole["policy weights"] == 2 * SHAPE.num_params
    assert whole["AdamW and 32-bit weights"] == 12 * SHAPE.num_params
    assert shared["policy weights"] == whole["policy weights"] / 4
    assert shared["gradients"] == whole["gradients"] / 4
    assert shared["AdamW and 32-bit weights"] == whole["AdamW and 32-bit weights"] / 8
    assert "reference weights" not in whole
    assert sizes(f"{ACTOR}.use_kl_loss=True")["reference weights"] == 2 * SHAPE.num_params


def test_a_missing_package_is_named_with_its_mend() -> None:
    code = """
import sys
sys.modules["megatron"] = None  # as if it were not installed
from tests.helpers.configs import REQUIRED, build
from verl.utils.errors import UserError
try:
    build("actor_rollout_ref.actor.strategy=megatron")
except UserError as error:
    print(error)
from verl.engines.base import EngineSpec, build_engine
try:
    build_engine(EngineSpec("folder", strategy="megatron", device="cpu"))
except UserError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    said = [line for line in done.stdout.splitlines() if "needs the package megatron-core" in line]
    assert len(said) == 2
    assert all("pip install --no-deps -r requirements/megatron.txt" in line for line in said)


def test_the_type_of_the_policys_passes_is_that_of_its_engine() -> None:
    keys = (f"{ACTOR}.megatron.dtype=float32", f"{ACTOR}.fsdp_config.mixed_precision.param_dtype=bfloat16")
    assert build(*keys).actor_rollout_ref.actor.compute_dtype == "bfloat16"
    assert build(*keys, f"{ACTOR}.strategy=megatron").actor_rollout_ref.actor.compute_dtype == "float32"
