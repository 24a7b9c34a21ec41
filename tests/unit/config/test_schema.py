# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Literal

import pytest

from verl.config import EvaluationConfig, GenerationConfig, PPOTrainerConfig, PRMTrainerConfig, SFTTrainerConfig
from verl.config.schema import describe_type, tree_of

ROOTS = [PPOTrainerConfig, SFTTrainerConfig, PRMTrainerConfig, GenerationConfig, EvaluationConfig]


@pytest.mark.parametrize("root", ROOTS)
def test_every_key_says_what_it_means(root: type) -> None:
    assert not [key for key, spec in tree_of(root).leaves.items() if len(spec.doc) < 10 or not spec.doc.endswith(".")]


@pytest.mark.parametrize("root", ROOTS)
def test_every_default_lies_within_its_limits(root: type) -> None:
    bad = [
        key
        for key, spec in tree_of(root).leaves.items()
        if spec.limits is not None and spec.default is not None and not spec.limits.accept(spec.default)
    ]
    assert not bad


def test_a_section_keeps_the_defaults_it_is_nested_with() -> None:
    leaves = tree_of(PPOTrainerConfig).leaves
    assert leaves["actor_rollout_ref.actor.fsdp_config.model_dtype"].default == "float32"
    assert leaves["actor_rollout_ref.ref.fsdp_config.model_dtype"].default == "bfloat16"


def test_tree_knows_leaves_sections_and_insides_of_free_mappings() -> None:
    tree = tree_of(PPOTrainerConfig)
    assert tree.knows("trainer.seed")
    assert tree.knows("actor_rollout_ref.actor")
    assert tree.knows("custom_reward_function.reward_kwargs.anything.deeper")
    assert not tree.knows("trainer.seed.deeper")
    assert not tree.knows("trainer.sed")


def test_inherited_fields_keep_their_docstrings() -> None:
    assert "gradient norm" in tree_of(SFTTrainerConfig).leaves["grad_clip"].doc


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (int, "int"),
        (str | None, "text or null"),
        (tuple[str, ...], "list of text"),
        (tuple[float, float], "[float, float]"),
        (Literal["a", "b"], "a | b"),
    ],
)
def test_describe_type(annotation: object, words: str) -> None:
    assert describe_type(annotation) == words
