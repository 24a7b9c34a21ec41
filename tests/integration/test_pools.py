# SPDX-License-Identifier: Apache-2.0
"""Pools of a run on two Ray nodes: GPUs of policy ranks and of rollout servers with a pool of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_ranks_and_servers_on_two_nodes_share_no_gpu() -> None:
    """Ray only counts GPUs and names them to processes: none need be there."""
    environment = {
        key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "CUDA_VISIBLE_DEVICES")
    }
    environment |= {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, "-m", "tests.integration.pools_job"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, env=environment, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    [report] = [line.removeprefix("REPORT ") for line in done.stdout.splitlines() if line.startswith("REPORT ")]
    places = json.loads(report)
    shown: dict[str, list[str]] = defaultdict(list)
    for node, devices in places["policy"] + places["rollout"]:
        shown[node] += devices.split(",")
    assert len(shown) == 2
    assert all(sorted(devices) == ["0", "1", "2", "3"] for devices in shown.values())
    assert [len(devices.split(",")) for _, devices in places["policy"]] == [1, 1, 1, 1]
    assert [len(devices.split(",")) for _, devices in places["rollout"]] == [2, 2]
    assert {node for node, _ in places["rollout"]} == set(shown)  # one server on each node
