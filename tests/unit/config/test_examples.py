# SPDX-License-Identifier: Apache-2.0
"""The five example scripts: their real command lines compose, with the values of the published runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.generate_config_reference import EXAMPLE_NAMES, EXAMPLES, example_arguments, load_example
from verl.config import BatchPlan
from verl.config.placement import place

PRM_SCRIPTS = tuple(name for name in EXAMPLE_NAMES if "rulebased" not in name)
QWEN, DEEPSEEK = "Qwen/Qwen2.5-7B-Instruct", "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"


@pytest.mark.parametrize("name", EXAMPLE_NAMES)
def test_published_values(name: str) -> None:
    loaded = load_example(name)
    config, policy = loaded.config, loaded.config.actor_rollout_ref
    assert policy.model.path == (QWEN if name.startswith("qwen") else DEEPSEEK)
    assert config.data.train_files == (str(Path.home() / "data/dapo/train.parquet"),)
    assert config.data.val_files == (str(Path.home() / "data/dapo/test.parquet"),)
    assert (config.data.train_batch_size, policy.actor.ppo_mini_batch_size, policy.rollout.n) == (32, 32, 6)
    assert config.data.max_prompt_length == 512
    assert config.data.max_response_length == (1024 if name == "qwen_qwen-prm_dapo" else 16384)
    assert policy.actor.optim.lr == 1e-6
    assert (policy.actor.use_kl_loss, policy.actor.kl_loss_coef, policy.actor.kl_loss_type) == (
        True,
        0.001,
        "low_var_kl",
    )
    assert policy.actor.entropy_coeff == 0.0
    assert (policy.rollout.name, policy.rollout.tensor_model_parallel_size) == ("vllm", 2)
    assert policy.rollout.gpu_memory_utilization == 0.6
    assert (config.trainer.save_freq, config.trainer.test_freq, config.trainer.total_epochs) == (20, 20, 1)
    assert config.trainer.logger == ("console", "wandb")
    assert config.trainer.run_dir == f"outputs/{name}"
    assert place(config).num_devices == 8
    assert BatchPlan.from_config(config).optimizer_steps_per_training_step == 1
    assert loaded.notices[0] == "trainer.critic_warmup: no effect here, there is no critic"


@pytest.mark.parametrize("name", EXAMPLE_NAMES)
def test_scorers(name: str) -> None:
    config = load_example(name).config
    prm = config.reward_model
    if name not in PRM_SCRIPTS:
        assert not prm.enable
        assert config.trainer.n_gpus_per_node == 8
        return
    assert prm.enable
    assert prm.model.path == ("Qwen/Qwen2.5-Math-PRM-7B" if "qwen-prm" in name else "Gen-Verse/ReasonFlux-PRM-7B")
    assert (config.trainer.n_gpus_per_node, prm.enable_resource_pool, prm.n_gpus_per_node) == (6, True, 2)


def test_arguments_win_over_the_script() -> None:
    extra = ("data.train_batch_size=12", "+actor_rollout_ref.actor.ppo_mini_batch_size=6", "trainer.logger=console")
    config = load_example("qwen_reasonflux_dapo", extra).config
    assert config.data.train_batch_size == 12
    assert config.actor_rollout_ref.actor.ppo_mini_batch_size == 6
    assert config.trainer.logger == ("console",)


def test_environment_sets_paths_and_sizes() -> None:
    environment = {
        "MODEL_PATH": "/models/a b=c",
        "PRM_PATH": "/models/prm",
        "TRAIN_FILES": "[/x/1.parquet,/x/2.parquet]",
        "VAL_FILES": "~/v.parquet",
        "NNODES": "2",
        "N_GPUS_PER_NODE": "12",
        "PRM_GPUS_PER_NODE": "4",
        "OUTPUT_DIR": "/out",
        "EXPERIMENT_NAME": "2025",
    }
    config = load_example("deepseek_reasonflux_dapo", environment=environment).config
    assert config.actor_rollout_ref.model.path == "/models/a b=c"
    assert config.reward_model.model.path == "/models/prm"
    assert config.data.train_files == ("/x/1.parquet", "/x/2.parquet")
    assert config.data.val_files == (str(Path.home() / "v.parquet"),)
    assert (config.trainer.nnodes, config.trainer.n_gpus_per_node) == (2, 12)
    assert (config.reward_model.nnodes, config.reward_model.n_gpus_per_node) == (2, 4)
    assert (config.trainer.run_dir, config.trainer.experiment_name) == ("/out", "2025")
    assert config.trainer.rollout_data_dir == "/out/rollouts"


@pytest.mark.parametrize("name", EXAMPLE_NAMES)
def test_scripts_are_short_and_run_from_anywhere(name: str) -> None:
    script = EXAMPLES / f"{name}.sh"
    assert len(script.read_text().splitlines()) <= 60
    # the stand-in runs in an empty folder, and links to the scripts must work as well
    assert example_arguments(script)[:2] == ["-m", "verl.trainer.main_ppo"]


def test_a_link_to_the_folder_of_scripts_works(tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(EXAMPLES.parent)
    arguments = example_arguments(tmp_path / "examples" / "grpo_trainer" / "qwen_rulebased_dapo.sh")
    assert arguments == example_arguments(EXAMPLES / "qwen_rulebased_dapo.sh")
