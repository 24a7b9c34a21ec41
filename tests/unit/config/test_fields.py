# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from verl.config.fields import Limits


@pytest.mark.parametrize(
    ("limits", "accepted", "refused"),
    [
        (Limits(low=1), (1, 7), (0, -1)),
        (Limits(above=0.0, high=1.0), (1e-9, 1.0), (0.0, 1.1)),
        (Limits(low=1, or_value=-1), (-1, 1), (0, -2)),
        (Limits(low=0, high=0), (0,), (1, -1)),
    ],
)
def test_limits(limits: Limits, accepted: tuple[float, ...], refused: tuple[float, ...]) -> None:
    assert all(limits.accept(value) for value in accepted)
    assert not any(limits.accept(value) for value in refused)


def test_limits_are_described_in_words() -> None:
    assert Limits(low=1, or_value=-1).describe() == "at least 1, or -1"
    assert Limits(above=0, high=1).describe() == "above 0 and at most 1"
