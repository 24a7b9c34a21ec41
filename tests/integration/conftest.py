# SPDX-License-Identifier: Apache-2.0
"""One real Ray cluster per session for the tests that need one."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator

import pytest
import ray

# One thread per process: on few cores two OpenMP threads beside another process were measured 35 times slower. Ray's
# workers inherit these. Set here as well as in scripts/test.sh, for who calls pytest directly.
DEFAULTS = {
    "OMP_NUM_THREADS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "WANDB_MODE": "offline",
}
OBJECT_STORE_BYTES = 256 << 20


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[str]:
    """Start Ray once and hand out its address.

    The CPUs it advertises are slots for actors, not cores: VERL_TEST_RAY_CPUS (default 32) of them on any machine.
    """
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    folder = tempfile.mkdtemp(prefix="ray-test-", dir="/tmp")  # short: it becomes part of a Unix socket's path
    context = ray.init(
        num_cpus=int(os.environ.get("VERL_TEST_RAY_CPUS", "32")),
        num_gpus=0,
        object_store_memory=OBJECT_STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
        _temp_dir=folder,
    )
    yield context.address_info["address"]
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)
