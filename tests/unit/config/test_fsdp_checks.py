# SPDX-License-Identifier: Apache-2.0
"""Shared sequences, adapters and offloaded activations: what is refused before anything starts, and what is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.configs import build, fault
from tests.unit.config.test_model_shape import write_config
from verl.config.batch_plan import SupervisedBatchPlan
from verl.config.files import find_missing
from verl.config.hydra import load_config
from verl.config.memory import training_memory
from verl.config.model_shape import read_shape
from verl.config.placement import place
from verl.config.sft import PRMTrainerConfig, SFTTrainerConfig
from verl.utils.errors import UserError

ACTOR, REF, MODEL = "actor_rollout_ref.actor", "actor_rollout_ref.ref", "actor_rollout_ref.model"
SHARED = "ulysses_sequence_parallel_size"
LORA = (f"{MODEL}.lora_rank=8", f"{MODEL}.target_modules=[q_proj,v_proj]")


@pytest.mark.parametrize(
    ("wrong", "said", "right"),
    [
        ([f"{ACTOR}.{SHARED}=3"], f"{ACTOR}.{SHARED}=3: must divide the 8 policy ranks", [f"{ACTOR}.{SHARED}=4"]),
        ([f"{REF}.{SHARED}=16"], f"{REF}.{SHARED}=16: must divide the 8 policy ranks", [f"{REF}.{SHARED}=8"]),
        (
            [
                f"{ACTOR}.{SHARED}=4",
                f"{REF}.{SHARED}=1",
                "data.train_batch_size=2",
                f"{ACTOR}.ppo_mini_batch_size=2",
                "actor_rollout_ref.rollout.n=2",
                f"{ACTOR}.use_kl_loss=True",
            ],
            f"{REF}.{SHARED}=1: 4 sequences per step must be a multiple of its 8 data-parallel ranks",
            [
                f"{ACTOR}.{SHARED}=4",
                "data.train_batch_size=2",
                f"{ACTOR}.ppo_mini_batch_size=2",
                "actor_rollout_ref.rollout.n=2",
                f"{ACTOR}.use_kl_loss=True",
            ],
        ),
        ([*LORA, f"{REF}.{SHARED}=2"], "the reference is the actor without its adapters", [*LORA]),
        ([LORA[0], f"{MODEL}.target_modules=[]"], "must name layers that get adapters", [LORA[0]]),
        (
            [f"{ACTOR}.fsdp_config.mixed_precision.param_dtype=float16"],
            f"{ACTOR}.fsdp_config.mixed_precision.param_dtype='float16': would need loss scaling",
            [f"{REF}.fsdp_config.mixed_precision.param_dtype=float16"],  # nothing is trained there
        ),
        (
            [f"{ACTOR}.fsdp_config.model_dtype=float16"],
            f"Set {ACTOR}.fsdp_config.model_dtype to bfloat16 or float32",
            [f"{ACTOR}.fsdp_config.model_dtype=bfloat16"],
        ),
        (
            [f"{MODEL}.enable_activation_offload=True", f"{MODEL}.enable_gradient_checkpointing=False"],
            "offloads what gradient checkpointing keeps",
            [f"{MODEL}.enable_activation_offload=True"],
        ),
        (
            [f"{ACTOR}.strategy=megatron", LORA[0]],
            f"{MODEL}.lora_rank=8: is not built for strategy=megatron",
            [LORA[0]],
        ),
        (
            [f"{ACTOR}.strategy=megatron", f"{ACTOR}.use_torch_compile=True"],
            "use_torch_compile=True: is not built for strategy=megatron",
            [f"{ACTOR}.use_torch_compile=True"],
        ),
        (
            [f"{ACTOR}.strategy=megatron", f"{MODEL}.enable_activation_offload=True"],
            "enable_activation_offload=True: is not built for strategy=megatron",
            [],
        ),
    ],
)
def test_what_is_refused_and_its_mend(wrong: list[str], said: str, right: list[str]) -> None:
    assert said in fault(*wrong)
    build(*right)


def test_heads_that_cannot_be_shared_are_found_before_anything_starts(tmp_path: Path) -> None:
    folder = write_config(tmp_path / "policy")  # 28 heads
    config = build(f"{MODEL}.path={folder}", f"{ACTOR}.{SHARED}=8")
    problems = [problem for problem in find_missing(config) if problem.key.endswith(SHARED)]
    assert [problem.line() for problem in problems] == [
        f"{ACTOR}.{SHARED}=8: must divide the model's 28 attention heads. Set it to a divisor of 28."
    ]
    fits = build(f"{MODEL}.path={folder}", f"{ACTOR}.{SHARED}=4")
    assert not [problem for problem in find_missing(fits) if problem.key.endswith(SHARED)]


def test_what_has_no_effect_is_said() -> None:
    notices = build(f"{MODEL}.lora_alpha=32").notices()
    assert f"{MODEL}.lora_alpha: no effect with lora_rank=0" in notices
    with_ref = (*LORA, f"{ACTOR}.use_kl_loss=True", f"{REF}.fsdp_config.param_offload=True")
    assert any(
        notice.startswith(f"{REF}.fsdp_config: no effect with lora_rank") for notice in build(*with_ref).notices()
    )
    assert not build(*LORA).notices()


def test_the_plan_knows_adapters_and_shared_sequences(tmp_path: Path) -> None:
    folder = write_config(tmp_path / "policy")
    shape, _ = read_shape(str(folder))
    assert shape is not None
    common = (f"{MODEL}.path={folder}", f"{ACTOR}.use_kl_loss=True", f"{ACTOR}.{SHARED}=2")
    plain, lora = build(*common), build(*common, *LORA, f"{MODEL}.enable_activation_offload=True")
    sizes = [{item.name: item.num_bytes for item in training_memory(config, shape)} for config in (plain, lora)]
    # A [8, 3584] and B [3584 or 512, 8] beside queries and values in each of 28 layers
    adapters = 28 * 8 * ((3584 + 28 * 128) + (3584 + 4 * 128))
    assert sizes[1]["adapters"] == sizes[1]["gradients"] == adapters * 4 / 8
    assert sizes[1]["AdamW moments"] == adapters * 8 / 8
    assert sizes[1]["policy weights"] == sizes[0]["policy weights"] / 2  # frozen: stored in bfloat16
    assert "reference weights" in sizes[0] and "reference weights" not in sizes[1]
    assert sizes[1]["activations"] < sizes[0]["activations"]
    notes = {role.role: role.note for role in place(lora).roles}
    assert notes["policy training"] == "fsdp2, 2 ranks per sequence, LoRA of rank 8"
    assert notes["reference"] == "the policy without its adapters"


def test_supervised_training_shares_sequences_and_trains_adapters_but_not_of_a_prm() -> None:
    common = ["model.path=org/model", "data.train_files=x.parquet", "trainer.n_gpus_per_node=4"]
    with pytest.raises(UserError, match=f"{SHARED}=3: must divide the 4 ranks"):
        load_config("sft_trainer", [*common, f"{SHARED}=3"], SFTTrainerConfig)
    shared = [*common, f"{SHARED}=2", "data.train_batch_size=6", "model.lora_rank=4"]
    plan = SupervisedBatchPlan.from_config(load_config("sft_trainer", shared, SFTTrainerConfig).config)
    assert (plan.ranks, plan.sequences_per_rank, plan.micro.max_tokens) == (2, 3, 2 * 16384)
    with pytest.raises(UserError, match="model.lora_rank=4: would leave the random score head frozen"):
        load_config("prm_trainer", [*common, "model.lora_rank=4"], PRMTrainerConfig)


def test_heads_of_a_supervised_model_are_counted_too(tmp_path: Path) -> None:
    common = [f"model.path={write_config(tmp_path)}", "data.train_files=x.parquet", "trainer.n_gpus_per_node=8"]
    config = load_config("sft_trainer", [*common, f"{SHARED}=8"], SFTTrainerConfig).config
    [problem] = [problem for problem in find_missing(config) if problem.key == SHARED]
    assert "must divide the model's 28 attention heads" in problem.line()
