# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from verl.config import ProcessRewardConfig


def test_beta_is_constant_without_a_schedule() -> None:
    assert [ProcessRewardConfig(beta=0.3).beta_at(step) for step in (0, 5, 10**6)] == [0.3] * 3


@pytest.mark.parametrize(
    ("step", "beta"), [(0, 0.75), (10, 0.75), (15, 0.5), (20, 0.25), (30, 0.5), (40, 0.75), (1000, 0.75)]
)
def test_beta_follows_the_points_of_its_schedule(step: int, beta: float) -> None:
    process = ProcessRewardConfig(beta=0.9, beta_schedule=((10, 0.75), (20, 0.25), (40, 0.75)))
    assert process.beta_at(step) == pytest.approx(beta)
