# SPDX-License-Identifier: Apache-2.0
"""Names that users import: they stay where they are."""

from __future__ import annotations

import importlib

import pytest

# Module to the names it must hold. A name is added here when it first exists and never leaves.
PUBLIC = {
    "verl": ("DataProto", "__version__"),
    "verl.protocol": ("DataProto",),
    "verl.rewards.prm": ("PRMScorer", "PRMScores", "ScoringSettings"),
    "verl.single_controller": ("Dispatch", "RayWorkerGroup", "Worker", "register"),
    "verl.trainer.main_eval": ("main",),
    "verl.trainer.main_generation": ("main",),
    "verl.trainer.main_ppo": ("TaskRunner", "main", "run_ppo"),
    "verl.trainer.ppo.ray_trainer": (
        "RayPPOTrainer",
        "ResourcePoolManager",
        "Role",
        "apply_kl_penalty",
        "compute_advantage",
        "compute_response_mask",
    ),
    "verl.utils.errors": ("UserError",),
}


@pytest.mark.parametrize(("module", "name"), [(module, name) for module in sorted(PUBLIC) for name in PUBLIC[module]])
def test_public_name_resolves(module: str, name: str) -> None:
    assert getattr(importlib.import_module(module), name) is not None
