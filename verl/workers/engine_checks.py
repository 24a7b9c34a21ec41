# SPDX-License-Identifier: Apache-2.0
"""Whether the ranks' engines can train a run's model, asked on the driver before Ray starts."""

from __future__ import annotations

import importlib

from verl.config import PPOTrainerConfig
from verl.config.model import ModelConfig
from verl.engines.preflight import check_trainable
from verl.workers.engine_specs import actor_engine_spec
from verl.workers.supervised_specs import SupervisedTrainerRoot, supervised_engine_spec

_DEVICE = "cpu"  # structure only: nothing is computed


def check_policy(config: PPOTrainerConfig) -> None:
    """Refuse a policy that its engine cannot train.

    Args:
        config: A checked root.

    Raises:
        UserError: It cannot.
    """
    _load_extensions(config.actor_rollout_ref.model)
    check_trainable(actor_engine_spec(config, _DEVICE, total_optimizer_steps=1))


def check_supervised(config: SupervisedTrainerRoot) -> None:
    """Refuse a model that SFT or PRM training cannot train.

    Args:
        config: A checked root.

    Raises:
        UserError: It cannot.
    """
    _load_extensions(config.model)
    check_trainable(supervised_engine_spec(config, _DEVICE, total_steps=1))


def _load_extensions(model: ModelConfig) -> None:
    """The user's module may make model families known, as it does on the ranks."""
    if model.external_lib:
        importlib.import_module(model.external_lib)
