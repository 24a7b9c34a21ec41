# SPDX-License-Identifier: Apache-2.0
"""No dead key: every configuration key is read by code that acts on it, or refused as not built."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.architecture.sources import ROOT, parse
from verl.config import EvaluationConfig, GenerationConfig, PPOTrainerConfig, PRMTrainerConfig, SFTTrainerConfig
from verl.config.schema import tree_of

# Reading a key in order to judge, describe or place it does not make it act.
ONLY_TALK = {
    "checks",
    "fsdp_checks",
    "megatron_checks",
    "reward_checks",
    "rollout_checks",
    "supervised_checks",
    "serving_checks",
    "notices",
    "plan",
    "memory",
    "placement",
    "files",
}
ROOTS = (PPOTrainerConfig, SFTTrainerConfig, PRMTrainerConfig, GenerationConfig, EvaluationConfig)
NOT_BUILT = ("actor_rollout_ref.actor.megatron.virtual_pipeline_model_parallel_size",)


def attributes_read() -> set[str]:
    files: list[Path] = [
        path for path in (ROOT / "verl").rglob("*.py") if not (path.parent.name == "config" and path.stem in ONLY_TALK)
    ]
    nodes = (node for path in files for node in ast.walk(parse(path)))
    return {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)}


@pytest.mark.parametrize("root", ROOTS)
def test_every_key_is_read(root: type) -> None:
    read = attributes_read()
    keys = [key for key in tree_of(root).leaves if not key.startswith(NOT_BUILT)]
    assert not [key for key in keys if key.rpartition(".")[2] not in read]
