# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.configs import WITH_PRM, build
from tests.unit.config.test_model_shape import write_config
from verl.config import PPOTrainerConfig, SFTTrainerConfig
from verl.config.hydra import load_config
from verl.config.memory import training_memory
from verl.config.model_shape import read_shape
from verl.config.placement import place
from verl.config.plan import build_plan, supervised_plan_text

PUBLISHED = (
    "data.train_batch_size=32",
    "data.max_response_length=16384",
    "actor_rollout_ref.actor.ppo_mini_batch_size=32",
    "actor_rollout_ref.actor.use_kl_loss=True",
    "actor_rollout_ref.rollout.n=6",
    "actor_rollout_ref.rollout.tensor_model_parallel_size=2",
    "trainer.n_gpus_per_node=6",
    *WITH_PRM,
)


def published(tmp_path: Path, *overrides: str) -> PPOTrainerConfig:
    policy = write_config(tmp_path / "policy")
    prm = write_config(tmp_path / "prm", max_position_embeddings=4096)
    paths = (f"actor_rollout_ref.model.path={policy}", f"reward_model.model.path={prm}")
    return build(*PUBLISHED, *paths, *overrides)


def test_roles_on_one_node_of_eight() -> None:
    placement = place(build(*PUBLISHED))
    assert placement.num_devices == 8
    assert (placement.rollout_servers, placement.prm_replicas) == (3, 2)
    found = {role.role: (role.instances, role.devices_each, role.pool) for role in placement.roles}
    assert found == {
        "policy training": (6, 1, "policy"),
        "rollout": (3, 2, "policy"),
        "reference": (6, 1, "policy"),
        "PRM": (2, 1, "prm"),
        "rule verifier": (4, 0, "cpu"),
    }


def test_roles_that_are_off_are_not_placed() -> None:
    roles = [role.role for role in place(build()).roles]
    assert roles == ["policy training", "rollout", "rule verifier"]


SPLIT = (
    "trainer.n_gpus_per_node=4",
    "actor_rollout_ref.rollout.enable_resource_pool=True",
    "actor_rollout_ref.rollout.nnodes=2",
    "actor_rollout_ref.rollout.n_gpus_per_node=6",
    "trainer.max_staleness=2",
    "algorithm.rollout_correction.rollout_is=token",
)


def test_rollout_servers_with_a_pool_of_their_own(tmp_path: Path) -> None:
    config = published(tmp_path, *SPLIT)
    placement = place(config)
    assert placement.num_devices == 4 + 12 + 2
    assert (placement.rollout_servers, placement.rollout_nodes, placement.rollout_devices_per_node) == (6, 2, 6)
    found = {role.role: (role.instances, role.devices_each, role.pool) for role in placement.roles}
    assert found["rollout"] == (6, 2, "rollout") and found["policy training"] == (4, 1, "policy")
    text = build_plan(config).text()
    pools = "pool policy: 1 x 4 devices; pool rollout: 2 x 6 devices; pool prm: 1 x 2 devices; 18 in all"
    assert pools in text and "vllm servers, TP 2, up to 2 step(s) ahead of the training" in text
    assert "rollout server" in text and "while answering" not in text
    # two batches of 32 x 6 responses at once, over 6 servers
    assert "64 responses of full length" in text


def test_a_prm_without_a_pool_is_one_replica_on_the_policy_s_devices() -> None:
    shared = ("reward_model.enable=True", "reward_model.model.path=org/prm", "reward_model.gpu_memory_utilization=0.3")
    placement = place(build(*shared))
    assert (placement.prm_replicas, placement.num_devices, placement.prm_nodes) == (1, 8, 0)


def test_text_of_the_plan(tmp_path: Path) -> None:
    text = build_plan(published(tmp_path), num_train_prompts=1000).text()
    for words in (
        "vllm servers, TP 2",
        "pool policy: 1 x 6 devices; pool prm: 1 x 2 devices; 8 in all",
        "192 sequences",
        "training steps: 930",  # 31 full batches in each of 30 epochs
        "float32, 1/6 of 7.62e9",
        "PRM weights",
        "the PRM reads 4096 tokens, a sequence may have 16896: overlong=window",
    ):
        assert words in text, words
    assert "unknown" not in text


def test_what_is_not_known_is_said() -> None:
    plan = build_plan(build(*PUBLISHED))
    assert plan.total_training_steps is None
    text = plan.text()
    assert "unknown: config.json of 'org/policy' is not on this machine" in text
    assert "unknown: config.json of 'org/prm' is not on this machine" in text
    assert "counted once the data is read" in text


def test_named_steps_win_over_epochs() -> None:
    plan = build_plan(build("trainer.total_training_steps=7"), num_train_prompts=10**6)
    assert plan.total_training_steps == 7


def test_training_memory_of_the_published_run(tmp_path: Path) -> None:
    config = published(tmp_path)
    shape, _ = read_shape(config.actor_rollout_ref.model.path)
    assert shape is not None
    sizes = {item.name: item.num_bytes for item in training_memory(config, shape)}
    # float32 weights, gradients and two moments over six ranks: 16 bytes per weight
    states = sizes["policy weights"] + sizes["gradients"] + sizes["AdamW moments"]
    assert states == pytest.approx(16 * shape.num_params / 6)
    assert sizes["reference weights"] == pytest.approx(2 * shape.num_params / 6)
    assert sizes["logits"] == 2 * 1024 * shape.vocab * 4


def test_memory_follows_the_switches(tmp_path: Path) -> None:
    def size(name: str, *overrides: str) -> float:
        config = published(tmp_path, *overrides)
        shape, _ = read_shape(config.actor_rollout_ref.model.path)
        assert shape is not None
        return {item.name: item.num_bytes for item in training_memory(config, shape)}.get(name, 0.0)

    actor = "actor_rollout_ref.actor"
    assert size("reference weights", f"{actor}.use_kl_loss=False") == 0.0
    assert size("policy weights", f"{actor}.fsdp_config.fsdp_size=2") == 3 * size("policy weights")
    unchecked = size("activations", "actor_rollout_ref.model.enable_gradient_checkpointing=False")
    assert unchecked > 5 * size("activations")
    doubled = size("activations", f"{actor}.ppo_max_token_len_per_gpu=33792")
    assert doubled == pytest.approx(2 * size("activations"))


def test_supervised_plan(tmp_path: Path) -> None:
    overrides = ["data.train_files=a.jsonl", f"model.path={write_config(tmp_path)}", "trainer.n_gpus_per_node=2"]
    text = supervised_plan_text(load_config("sft_trainer", overrides, SFTTrainerConfig).config)
    assert "parameters" in text
    assert "ranks: 1 x 2" in text
