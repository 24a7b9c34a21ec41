# SPDX-License-Identifier: Apache-2.0
"""A tiny PRM for all programs, and the programs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.prm import save_tiny_prm
from tests.helpers.programs import Program


@pytest.fixture(scope="session")
def prm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_prm(tmp_path_factory.mktemp("prm"))


@pytest.fixture
def score(capsys: pytest.CaptureFixture[str]) -> Program:
    return Program("score", capsys)


@pytest.fixture
def select_data(capsys: pytest.CaptureFixture[str]) -> Program:
    return Program("select_data", capsys)


@pytest.fixture
def best_of_n(capsys: pytest.CaptureFixture[str]) -> Program:
    return Program("best_of_n", capsys)
