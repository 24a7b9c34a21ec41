# SPDX-License-Identifier: Apache-2.0
"""Whether the ranks' engines can train a run's model, asked on the driver before Ray starts."""

from __future__ import annotations

import importlib

from verl.config import PPOTrainerConfig
from verl.config.model import ModelConfig
from verl.engines.preflight import check_trainable
from verl.utils.errors import UserError
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
    _load_extensions(config.actor_rollout_ref.model, "actor_rollout_ref.model")
    check_trainable(actor_engine_spec(config, _DEVICE, total_optimizer_steps=1))


def check_supervised(config: SupervisedTrainerRoot) -> None:
    """Refuse a model that SFT or PRM training cannot train.

    Args:
        config: A checked root.

    Raises:
        UserError: It cannot.
    """
    _load_extensions(config.model, "model")
    check_trainable(supervised_engine_spec(config, _DEVICE, total_steps=1))


def _load_extensions(model: ModelConfig, section: str) -> None:
    """The user's module may make model families known, as it does on the ranks."""
    if not model.external_lib:
        return
    try:
        importlib.import_module(model.external_lib)
    except ModuleNotFoundError as error:
        allowed, mend = f"cannot be imported ({error})", "Name a Python module on PYTHONPATH"
        raise UserError.for_key(f"{section}.external_lib", model.external_lib, allowed, mend) from error
