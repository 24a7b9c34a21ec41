# SPDX-License-Identifier: Apache-2.0
"""The Slurm helper without Slurm and without Ray: ports, command line, waiting, stopping."""

from __future__ import annotations

import os
import runpy
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def ray_node() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(ROOT / "scripts/slurm/ray_node.py"), run_name="ray_node"))


def make_plan(ray_node: SimpleNamespace, index: int, **changes: object) -> object:
    fields = {
        "head": "10.0.0.7:4321",
        "index": index,
        "temp_dir": Path(f"/tmp/ray-9-{index}"),
        "log_dir": Path("logs"),
        "num_cpus": None,
        "object_store_bytes": None,
    }
    return ray_node.NodePlan(**(fields | changes))


def test_free_ports_differ_and_can_be_bound(ray_node: SimpleNamespace) -> None:
    ports = ray_node.find_free_ports(20)
    assert len(set(ports)) == 20
    with socket.socket() as listener:
        listener.bind(("", ports[0]))


def test_head_gets_the_address_and_no_dashboard(ray_node: SimpleNamespace) -> None:
    command = ray_node.build_command(make_plan(ray_node, 0, num_cpus=8, object_store_bytes=1000))
    assert {"--head", "--node-ip-address=10.0.0.7", "--port=4321", "--include-dashboard=false"} <= set(command)
    assert {"--num-cpus=8", "--object-store-memory=1000", "--block", "--temp-dir=/tmp/ray-9-0"} <= set(command)


def test_others_join_the_head_and_share_no_port(ray_node: SimpleNamespace) -> None:
    one = ray_node.build_command(make_plan(ray_node, 1))
    two = ray_node.build_command(make_plan(ray_node, 2))
    assert "--address=10.0.0.7:4321" in one
    assert "--head" not in one
    assert not [part for part in one if part.startswith(("--num-cpus", "--num-gpus"))]
    ports = [part for part in one if "-port=" in part]
    assert len(ports) == 4
    assert not set(ports) & {part for part in two if "-port=" in part}


def test_temporary_folders_are_short_and_distinct(ray_node: SimpleNamespace) -> None:
    paths = [ray_node.choose_temp_dir("1234567", index) for index in range(3)]
    assert len(set(paths)) == 3
    assert max(len(str(path)) for path in paths) <= ray_node.MAX_TEMP_ROOT_LEN + len("/ray-1234567-0")


def test_waiting_for_a_head_names_what_it_waits_for(ray_node: SimpleNamespace) -> None:
    port = ray_node.find_free_ports(1)[0]
    with pytest.raises(TimeoutError, match=f"Ray head at 127.0.0.1:{port}"):
        ray_node.wait_for_head(f"127.0.0.1:{port}", 0.2)


def test_waiting_for_a_head_ends_when_it_answers(ray_node: SimpleNamespace) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        ray_node.wait_for_head(f"127.0.0.1:{listener.getsockname()[1]}", 5)


def test_stopping_ends_the_whole_session_and_nothing_else(ray_node: SimpleNamespace) -> None:
    forking = "import subprocess, sys; subprocess.Popen(['sleep', '60']); print('up', flush=True); sys.stdin.read()"
    # Reads from a pipe that stays open, so only the signal ends it.
    own = subprocess.Popen(
        [sys.executable, "-c", forking], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    neighbour = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        assert own.stdout is not None
        assert own.stdout.readline() == b"up\n"
        ray_node.stop_ray(own)
        assert own.poll() is not None
        await_empty_group(own.pid)
        assert neighbour.poll() is None
    finally:
        neighbour.kill()
        neighbour.wait()


def await_empty_group(group: int) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    raise AssertionError(f"process group {group} is still there")


def test_number_from_the_environment(ray_node: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERL_RAY_NUM_CPUS", "16")
    assert ray_node.read_int("VERL_RAY_NUM_CPUS") == 16
    monkeypatch.setenv("VERL_RAY_NUM_CPUS", "")
    assert ray_node.read_int("VERL_RAY_NUM_CPUS") is None
    monkeypatch.setenv("VERL_RAY_NUM_CPUS", "many")
    with pytest.raises(SystemExit) as stopped:
        ray_node.read_int("VERL_RAY_NUM_CPUS")
    assert stopped.value.code == 2


def test_watched_process_that_ended_stops_the_waiting(ray_node: SimpleNamespace) -> None:
    ray_node.require_running(None)
    ray_node.require_running(os.getpid())
    ended = subprocess.Popen(["true"])
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)  # ended, but still in the process table
    with pytest.raises(RuntimeError, match="has ended"):
        ray_node.wait_for_head(f"127.0.0.1:{ray_node.find_free_ports(1)[0]}", 30, ended.pid)
    ended.wait()
    with pytest.raises(RuntimeError, match="has ended"):
        ray_node.require_running(ended.pid)
