# SPDX-License-Identifier: Apache-2.0
"""The cluster that the other integration tests share."""

from __future__ import annotations

import os

import pytest
import ray

from tests.integration.conftest import DEFAULTS, OBJECT_STORE_BYTES

pytestmark = pytest.mark.ray


def test_workers_run_with_one_thread_and_stay_quiet(ray_cluster: str) -> None:
    @ray.remote(num_cpus=1)
    def read_environment() -> dict[str, str | None]:
        return {name: os.environ.get(name) for name in DEFAULTS}

    seen = ray.get(read_environment.remote(), timeout=60)
    assert seen["OMP_NUM_THREADS"] == "1"
    assert seen["RAY_USAGE_STATS_ENABLED"] == "0"


def test_cluster_is_small_and_has_no_gpu(ray_cluster: str) -> None:
    have = ray.cluster_resources()
    assert have["CPU"] == int(os.environ.get("VERL_TEST_RAY_CPUS", "32"))
    assert "GPU" not in have
    assert have["object_store_memory"] <= OBJECT_STORE_BYTES
