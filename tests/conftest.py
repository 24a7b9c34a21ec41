# SPDX-License-Identifier: Apache-2.0
"""Fixtures that every test may use."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

SHARED_DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"

# No time limit per example (a timed assertion is not a test), and the same examples on every run.
settings.register_profile("repository", deadline=None, max_examples=40, derandomize=True)
settings.load_profile("repository")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real data (math problems, responses, the Qwen2.5 tokenizer) beside the repository."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the folder ../shared/data with real data is not there")
    return SHARED_DATA
