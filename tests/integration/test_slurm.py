# SPDX-License-Identifier: Apache-2.0
"""`scripts/slurm/train.sbatch` on a real Slurm controller with two nodes; asked for with `-m slurm`.

Uses the Slurm that is there, else starts a two-node one with ../shared/tools/mini_slurm.sh. Needs root for the latter.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.helpers.tiny_run import make_assets, run_arguments

pytestmark = [pytest.mark.slurm, pytest.mark.opt_in, pytest.mark.ray]

ROOT = Path(__file__).resolve().parents[2]
MINI_SLURM = ROOT.parent / "shared" / "tools" / "mini_slurm.sh"
JOB = Path(__file__).with_name("slurm_job.py")
LIMIT_S = 480


def slurm_answers() -> bool:
    if shutil.which("sinfo") is None:
        return False
    return subprocess.run(["sinfo"], capture_output=True, timeout=30).returncode == 0


@pytest.fixture(scope="module")
def slurm() -> Iterator[None]:
    if slurm_answers():
        yield
        return
    if not MINI_SLURM.is_file():
        pytest.skip("no Slurm controller answers and ../shared/tools/mini_slurm.sh is not there")
    if os.geteuid() != 0:
        pytest.skip("no Slurm controller answers and starting one needs root")
    # To a file: the daemons keep the pipe of their parent open, and reading it would never end.
    with open(os.devnull, "wb") as nowhere:
        subprocess.run(["bash", str(MINI_SLURM), "start"], check=True, timeout=300, stdout=nowhere, stderr=nowhere)
    yield
    subprocess.run(["bash", str(MINI_SLURM), "stop"], check=True, timeout=60)


def submit(folder: Path, nodes: int, *arguments: str, script: Path = JOB, **more: str) -> tuple[str, Path]:
    """Submit the job from a folder of its own; returns its number and its log."""
    log = folder / "job.log"
    variables = {"VERL_REPO": str(ROOT), "VERL_VENV": sys.prefix, "VERL_RAY_OBJECT_STORE_BYTES": str(128 << 20)}
    done = subprocess.run(
        ["sbatch", "--parsable", f"--nodes={nodes}", f"--output={log}", ROOT / "scripts/slurm/train.sbatch", script]
        + list(arguments),
        cwd=folder,
        env=os.environ | variables | more,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().split(";")[0], log


def wait_for_end(job: str, log: Path) -> str:
    """Wait until the job has left the queue; returns its log."""
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        queue = subprocess.run(["squeue", "-h", "-j", job], capture_output=True, text=True, timeout=30)
        if not queue.stdout.strip() and log.exists() and "ended with code" in log.read_text():
            return log.read_text()
        time.sleep(1)
    raise AssertionError(f"job {job} did not end within {LIMIT_S} s:\n{log.read_text() if log.exists() else ''}")


def wait_for_text(text: str, log: Path) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not (log.exists() and text in log.read_text()):
        assert time.monotonic() < deadline, f"{text!r} did not appear in {log}"
        time.sleep(1)


def read_report(log: str) -> dict[str, Any]:
    lines = [line for line in log.splitlines() if line.startswith("REPORT ")]
    assert len(lines) == 1, log
    return json.loads(lines[0].removeprefix("REPORT "))


def processes_of(job: str) -> list[int]:
    """Processes whose command line names a temporary folder of this job."""
    return [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if any(f"/ray-{job}-" in part for part in process.info["cmdline"] or ())
    ]


def assert_nothing_is_left(job: str) -> None:
    assert not list(Path("/tmp").glob(f"ray-{job}-*"))
    assert not processes_of(job)


def test_two_nodes_make_one_ray_cluster(slurm: None, tmp_path: Path) -> None:
    job, log = submit(tmp_path, 2, "trainer.nnodes=2")
    text = wait_for_end(job, log)
    assert "ended with code 0" in text
    report = read_report(text)
    assert len(set(report["alive"])) == 2
    assert len({node for node, _ in report["places"]}) == 2
    assert len({name for _, name in report["places"]}) == 2
    assert report["arguments"] == ["trainer.nnodes=2"]
    assert (tmp_path / "outputs/slurm" / job / "node-1").is_dir()
    assert_nothing_is_left(job)


def test_the_example_script_trains_over_two_nodes(slurm: None, tmp_path: Path) -> None:
    assets = make_assets(tmp_path / "assets")
    paths = {
        "MODEL_PATH": f"{assets}/policy_init",
        "PRM_PATH": f"{assets}/prm_init",
        "TRAIN_FILES": f"{assets}/data/train.parquet",
        "VAL_FILES": f"{assets}/data/test.parquet",
        "OUTPUT_DIR": f"{tmp_path}/run",
        "N_GPUS_PER_NODE": "1",
        "PRM_GPUS_PER_NODE": "1",
        "VERL_RAY_NUM_CPUS": "2",  # a policy rank and a PRM replica on each node
        "OMP_NUM_THREADS": "1",
    }
    arguments = [
        *run_arguments(assets, tmp_path / "run"),
        "actor_rollout_ref.rollout.tensor_model_parallel_size=1",
        "trainer.logger=[console]",
    ]
    script = ROOT / "examples/grpo_trainer/qwen_reasonflux_dapo.sh"
    job, log = submit(tmp_path, 2, *arguments, script=script, **paths)
    text = wait_for_end(job, log)
    assert "ended with code 0" in text, text[-3000:]
    assert "weight sync proved" in text
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert (tmp_path / "run/checkpoints/global_step_2/actor").is_dir()
    assert_nothing_is_left(job)


def test_exit_code_of_the_script_is_that_of_the_job(slurm: None, tmp_path: Path) -> None:
    job, log = submit(tmp_path, 1, "end=3")
    text = wait_for_end(job, log)
    assert "ended with code 3" in text
    assert len(read_report(text)["alive"]) == 1
    assert_nothing_is_left(job)


def test_cancelled_job_leaves_nothing_and_spares_its_neighbour(slurm: None, tmp_path: Path) -> None:
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
    (first, first_log), (second, second_log) = (submit(folder, 1, "end=never") for folder in folders)
    try:
        wait_for_text("REPORT ", first_log)
        wait_for_text("REPORT ", second_log)
        assert processes_of(first)
        subprocess.run(["scancel", first], check=True, timeout=30)
        wait_for_end(first, first_log)
        assert_nothing_is_left(first)
        assert processes_of(second)
    finally:
        subprocess.run(["scancel", first, second], timeout=30)
    wait_for_end(second, second_log)
    assert_nothing_is_left(second)
