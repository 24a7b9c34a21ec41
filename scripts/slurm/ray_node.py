# SPDX-License-Identifier: Apache-2.0
"""One Ray node inside a Slurm allocation: choose an address, serve until told to stop, wait for the others.

    ray_node.py address                                  prints IP:PORT for the head, the port free at this moment
    ray_node.py serve --head IP:PORT --index K ...       runs Ray on this node in the foreground (one call per node)
    ray_node.py wait --head IP:PORT --nodes N ...        returns once N nodes have joined

Each node has ports and a temporary folder of its own, so two Slurm nodes may lie on one host. Ray is stopped through
the process that was started here and through nothing else: `ray stop` would also stop the neighbours of a shared host.
Knows nothing of the training.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import psutil
import ray

HEAD_LIMIT_S = 180.0
STOP_LIMIT_S = 15.0
POLL_S = 0.5
# A Unix socket's path may have 107 characters, of which Ray takes about 70 below its temporary folder.
MAX_TEMP_ROOT_LEN = 24


@dataclass(frozen=True)
class NodePlan:
    """What one node is started with.

    Attributes:
        head: `IP:PORT` of the cluster's head.
        index: Number of this node in the allocation; 0 is the head.
        temp_dir: Folder of this node alone, on a local disk.
        log_dir: Where Ray's logs are put when the node stops.
        num_cpus: CPUs this node advertises, None for Ray's own count.
        object_store_bytes: Size of the object store, None for Ray's own choice.
    """

    head: str
    index: int
    temp_dir: Path
    log_dir: Path
    num_cpus: int | None
    object_store_bytes: int | None


class StopRequestedError(Exception):
    """SIGTERM or SIGINT arrived."""


def say(message: str, index: int | None = None) -> None:
    """Write one line to the job's log.

    Args:
        message: The text.
        index: Number of the node it is about, if any.
    """
    place = "" if index is None else f" node {index} ({socket.gethostname()})"
    print(f"ray_node{place}: {message}", flush=True)


def find_free_ports(count: int) -> list[int]:
    """Find ports that are free at this moment.

    Args:
        count: How many; all are held open together, so they differ.

    Returns:
        Port numbers.
    """
    sockets = [socket.socket(socket.AF_INET, socket.SOCK_STREAM) for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def build_command(plan: NodePlan) -> list[str]:
    """Build the `ray start` command line of one node.

    Args:
        plan: The node.

    Returns:
        Program and arguments.
    """
    metrics, agent_http, agent_grpc, runtime_env, client = find_free_ports(5)
    command = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--disable-usage-stats"]
    command += [f"--metrics-export-port={metrics}", f"--dashboard-agent-listen-port={agent_http}"]
    command += [f"--dashboard-agent-grpc-port={agent_grpc}", f"--runtime-env-agent-port={runtime_env}"]
    command += [f"--temp-dir={plan.temp_dir}"]
    if plan.index == 0:
        address, port = plan.head.rsplit(":", 1)
        command += ["--head", f"--node-ip-address={address}", f"--port={port}", "--include-dashboard=false"]
        command += [f"--ray-client-server-port={client}"]
    else:
        command += [f"--address={plan.head}"]
    if plan.num_cpus is not None:
        command += [f"--num-cpus={plan.num_cpus}"]
    if plan.object_store_bytes is not None:
        command += [f"--object-store-memory={plan.object_store_bytes}"]
    return command


def require_running(pid: int | None) -> None:
    """Make sure that the step which starts the nodes still runs.

    Args:
        pid: Its process id, None if there is nothing to watch.

    Raises:
        RuntimeError: If it has ended (also while nobody has collected its exit code yet).
    """
    try:
        if pid is None or psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            return
    except psutil.NoSuchProcess:
        pass
    raise RuntimeError("the step that starts Ray on the nodes has ended; its lines above say why")


def wait_for_head(head: str, limit_s: float, watch_pid: int | None = None) -> None:
    """Wait until the head's port answers.

    Args:
        head: `IP:PORT`.
        limit_s: Time limit in seconds.
        watch_pid: A process without which waiting is pointless.

    Raises:
        TimeoutError: If nothing answers in time.
        RuntimeError: If the watched process has ended.
    """
    address, port = head.rsplit(":", 1)
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        try:
            socket.create_connection((address, int(port)), timeout=2).close()
            return
        except OSError:
            require_running(watch_pid)
            time.sleep(POLL_S)
    raise TimeoutError(f"waited {limit_s:.0f} s for the Ray head at {head}; its own log says why it did not start")


def stop_ray(process: subprocess.Popen[bytes]) -> None:
    """Stop the Ray node that this program started, and nothing else.

    Args:
        process: `ray start --block`, leader of its own session. Its children die with it.
    """
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            say(f"pid {process.pid} did not stop within {STOP_LIMIT_S:.0f} s, killing its session")
    try:
        os.killpg(process.pid, signal.SIGKILL)  # whatever is left of the session
    except ProcessLookupError:
        pass


def clear_away(plan: NodePlan) -> None:
    """Keep the logs and remove the temporary folder.

    Args:
        plan: The node.
    """
    logs = plan.temp_dir / "session_latest" / "logs"
    if logs.is_dir():
        shutil.copytree(logs, plan.log_dir / f"node-{plan.index}", dirs_exist_ok=True, ignore_dangling_symlinks=True)
    shutil.rmtree(plan.temp_dir, ignore_errors=True)


def raise_stopped(signum: int, frame: FrameType | None) -> None:
    """Turn a signal into an exception.

    Args:
        signum: The signal's number.
        frame: Unused.

    Raises:
        StopRequestedError: Always.
    """
    raise StopRequestedError(signal.Signals(signum).name)


def serve(plan: NodePlan) -> int:
    """Run one Ray node until it is told to stop or dies.

    Args:
        plan: The node.

    Returns:
        Exit code: 0 if it was told to stop, else Ray's own (never 0: it was not expected to end).
    """
    signal.signal(signal.SIGTERM, raise_stopped)
    signal.signal(signal.SIGINT, raise_stopped)
    plan.log_dir.mkdir(parents=True, exist_ok=True)
    process: subprocess.Popen[bytes] | None = None
    try:
        plan.temp_dir.mkdir(parents=True, mode=0o700)
        if plan.index > 0:
            wait_for_head(plan.head, HEAD_LIMIT_S)
        with open(plan.log_dir / f"node-{plan.index}.log", "wb") as log:
            process = subprocess.Popen(
                build_command(plan),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Nothing is left to drain once the training has ended, and Slurm's patience is 30 s.
                env=os.environ | {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"},
                start_new_session=True,
            )
        (plan.temp_dir / "ray.pid").write_text(f"{process.pid}\n")
        say(f"started pid {process.pid}, temporary folder {plan.temp_dir}, log {log.name}", plan.index)
        code = process.wait()
        say(f"Ray ended by itself with code {code}, see {log.name}", plan.index)
        return code or 1
    except StopRequestedError as reason:
        say(f"{reason}, stopping", plan.index)
        return 0
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not interrupt the clean-up
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if process is not None:
            stop_ray(process)
        clear_away(plan)
        say("stopped and cleared away", plan.index)


def wait_for_nodes(head: str, num_nodes: int, limit_s: float, watch_pid: int | None) -> None:
    """Wait until all nodes have joined.

    Args:
        head: `IP:PORT`.
        num_nodes: How many nodes the cluster must have.
        limit_s: Time limit in seconds.
        watch_pid: A process without which waiting is pointless (the step that starts the nodes).

    Raises:
        TimeoutError: If they are not there in time.
        RuntimeError: If the watched process has ended.
    """
    deadline = time.monotonic() + limit_s
    wait_for_head(head, limit_s, watch_pid)
    try:
        ray.init(address=head, log_to_driver=False, logging_level="ERROR")
        while True:
            alive = [node for node in ray.nodes() if node["Alive"]]
            if len(alive) >= num_nodes:
                break
            require_running(watch_pid)
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {limit_s:.0f} s for {num_nodes} Ray nodes, {len(alive)} joined")
            time.sleep(POLL_S)
        for node in alive:
            have = {key: node["Resources"].get(key, 0) for key in ("CPU", "GPU")}
            say(f"joined: {node['NodeID'][:12]} at {node['NodeManagerAddress']}:{node['NodeManagerPort']} with {have}")
    finally:
        ray.shutdown()


def choose_temp_dir(job_id: str, index: int) -> Path:
    """Name the temporary folder of one node.

    Args:
        job_id: Slurm's number of the job.
        index: Number of the node in the allocation.

    Returns:
        A short path below the local temporary folder, distinct per job and node.
    """
    root = tempfile.gettempdir()
    return Path(root if len(root) <= MAX_TEMP_ROOT_LEN else "/tmp") / f"ray-{job_id}-{index}"


def read_int(name: str) -> int | None:
    """Read a whole number from the environment.

    Args:
        name: Name of the variable.

    Returns:
        The number, None if the variable is unset or empty.

    Raises:
        SystemExit: With code 2 if it is not a positive whole number.
    """
    text = os.environ.get(name, "")
    if not text:
        return None
    if not text.isdecimal() or int(text) < 1:
        say(f"{name}={text!r}: must be a whole number of at least 1")
        raise SystemExit(2)
    return int(text)


def parse_arguments() -> argparse.Namespace:
    """Read the command line.

    Returns:
        The parsed arguments; `command` says which of the three it is.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("address")
    serving = commands.add_parser("serve")
    serving.add_argument("--head", required=True, help="IP:PORT of the head")
    serving.add_argument("--index", type=int, default=int(os.environ.get("SLURM_PROCID", "0")))
    serving.add_argument("--job-id", default=os.environ.get("SLURM_JOB_ID", str(os.getpid())))
    serving.add_argument("--log-dir", type=Path, required=True)
    waiting = commands.add_parser("wait")
    waiting.add_argument("--head", required=True, help="IP:PORT of the head")
    waiting.add_argument("--nodes", type=int, required=True)
    waiting.add_argument("--limit-s", type=float, default=300.0)
    waiting.add_argument("--watch-pid", type=int)
    return parser.parse_args()


def main() -> int:
    """Run one of the three commands.

    Returns:
        Exit code.
    """
    arguments = parse_arguments()
    if arguments.command == "address":
        address = os.environ.get("VERL_HEAD_IP") or ray.util.get_node_ip_address()
        print(f"{address}:{find_free_ports(1)[0]}")
        return 0
    try:
        if arguments.command == "wait":
            wait_for_nodes(arguments.head, arguments.nodes, arguments.limit_s, arguments.watch_pid)
            return 0
        plan = NodePlan(
            head=arguments.head,
            index=arguments.index,
            temp_dir=choose_temp_dir(arguments.job_id, arguments.index),
            log_dir=arguments.log_dir,
            num_cpus=read_int("VERL_RAY_NUM_CPUS") or read_int("SLURM_CPUS_PER_TASK") or read_int("SLURM_CPUS_ON_NODE"),
            object_store_bytes=read_int("VERL_RAY_OBJECT_STORE_BYTES"),
        )
        return serve(plan)
    except (ConnectionError, TimeoutError, RuntimeError) as error:
        say(str(error))
        return 1


if __name__ == "__main__":
    sys.exit(main())
