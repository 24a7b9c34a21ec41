# SPDX-License-Identifier: Apache-2.0
"""Fixtures that every test may use."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED_DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real data (math problems, responses, the Qwen2.5 tokenizer) beside the repository."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the folder ../shared/data with real data is not there")
    return SHARED_DATA
