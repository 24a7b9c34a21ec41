# SPDX-License-Identifier: Apache-2.0
"""The committed reference is what the dataclasses say; composing it gives the dataclasses back."""

from __future__ import annotations

import pytest
import yaml
from omegaconf import OmegaConf
from setuptools import find_packages

from scripts.generate_config_reference import REPO, ROOTS, main, render_document
from verl.config.convert import convert
from verl.config.reference import render_yaml, split_unit
from verl.config.schema import tree_of

REMEDY = "run: python3 scripts/generate_config_reference.py"


@pytest.mark.parametrize("name", ROOTS)
def test_committed_yaml_is_up_to_date(name: str) -> None:
    root, title = ROOTS[name]
    assert (REPO / "verl" / "trainer" / "config" / f"{name}.yaml").read_text() == render_yaml(root, title), REMEDY


@pytest.mark.parametrize("name", ROOTS)
def test_yaml_gives_the_defaults_back(name: str) -> None:
    root, _ = ROOTS[name]
    text = (REPO / "verl" / "trainer" / "config" / f"{name}.yaml").read_text()
    for plain in (yaml.safe_load(text), OmegaConf.to_container(OmegaConf.create(text))):
        config, problems = convert(plain, root, tree_of(root))
        assert not problems
        assert config == root()


def test_committed_document_is_up_to_date() -> None:
    assert (REPO / "docs" / "configuration.md").read_text() == render_document(), REMEDY


def test_document_names_every_key_once_per_root() -> None:
    text = (REPO / "docs" / "configuration.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert len(rows) == sum(len(tree_of(root).leaves) for root, _ in ROOTS.values())


def test_check_writes_nothing() -> None:
    assert main(["--check"]) == 0


def test_units_are_split_off() -> None:
    assert split_unit("Longest prompt. Unit: tokens.") == ("Longest prompt.", "tokens")
    assert split_unit("A switch.") == ("A switch.", "")


def test_yaml_files_are_part_of_the_installed_package() -> None:
    assert "verl.trainer.config" in find_packages(str(REPO), include=["verl", "verl.*"])
