# SPDX-License-Identifier: Apache-2.0
"""Configurations for tests: the shortest command line that is accepted, and what an unaccepted one says."""

from __future__ import annotations

import pytest

from verl.config import PPOTrainerConfig
from verl.config.hydra import LoadedConfig, load_config
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
    """Compose a GRPO configuration from the required keys and some more."""
    return load_config("ppo_trainer", [*required, *overrides], PPOTrainerConfig)


def refusal(*overrides: str, required: tuple[str, ...] = REQUIRED) -> str:
    """Give the message with which a command line is refused."""
    with pytest.raises(UserError) as caught:
        load(*overrides, required=required)
    return str(caught.value)
