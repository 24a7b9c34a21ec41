# SPDX-License-Identifier: Apache-2.0
"""Configurations for tests: the shortest command line that is accepted, and what an unaccepted one says."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from verl.config import PPOTrainerConfig
from verl.config.convert import convert
from verl.config.hydra import LoadedConfig, load_config
from verl.config.problems import raise_all
from verl.config.schema import tree_of
from verl.utils.errors import UserError

REQUIRED = (
    "data.train_files=train.parquet",
    "data.val_files=test.parquet",
    "actor_rollout_ref.model.path=org/policy",
    "actor_rollout_ref.rollout.n=8",
)
WITH_PRM = (
    "reward_model.enable=True",
    "reward_model.model.path=org/prm",
    "reward_model.enable_resource_pool=True",
    "reward_model.n_gpus_per_node=2",
)


def load(*overrides: str, required: tuple[str, ...] = REQUIRED) -> LoadedConfig[PPOTrainerConfig]:
    """Compose a GRPO configuration from the required keys and some more, through the real door."""
    return load_config("ppo_trainer", [*required, *overrides], PPOTrainerConfig)


def refusal(*overrides: str, required: tuple[str, ...] = REQUIRED) -> str:
    """Give the message with which the real door refuses a command line."""
    with pytest.raises(UserError) as caught:
        load(*overrides, required=required)
    return str(caught.value)


def build(*overrides: str, required: tuple[str, ...] = REQUIRED) -> PPOTrainerConfig:
    """Convert and check present keys without Hydra: a fraction of the time, for tests of what lies behind the door."""
    plain = OmegaConf.to_container(OmegaConf.from_dotlist([*required, *overrides]))
    assert isinstance(plain, dict)
    config, problems = convert(
        {str(key): value for key, value in plain.items()}, PPOTrainerConfig, tree_of(PPOTrainerConfig)
    )
    raise_all(problems or config.problems())
    return config


def fault(*overrides: str, required: tuple[str, ...] = REQUIRED) -> str:
    """Give the message with which `build` refuses."""
    with pytest.raises(UserError) as caught:
        build(*overrides, required=required)
    return str(caught.value)
