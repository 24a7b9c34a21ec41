# SPDX-License-Identifier: Apache-2.0
"""Whole runs with real SGLang servers: training, and `main_generation`; asked for with `-m sglang`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.sglang import real_environment, real_interpreter
from tests.helpers.tiny_run import make_assets, run_arguments

pytestmark = [pytest.mark.sglang, pytest.mark.opt_in, pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_assets(tmp_path_factory.mktemp("assets"))


def sglang_keys(section: str) -> list[str]:
    """Arguments that name the engine and its environment."""
    environment = [f"+{section}.sglang.env.{name}={value}" for name, value in real_environment().items()]
    return [f"{section}.name=sglang", f"{section}.sglang.python={real_interpreter()}", *environment]


def run_module(module: str, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=550, env=environment, check=False)


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_training_samples_from_the_weights_it_synced(assets: Path, tmp_path: Path) -> None:
    done = run_module(
        "verl.trainer.main_ppo",
        [
            *run_arguments(assets, tmp_path),
            *sglang_keys("actor_rollout_ref.rollout"),
            "actor_rollout_ref.rollout.gpu_memory_utilization=0.1",
            "actor_rollout_ref.actor.entropy_coeff=0.1",  # a random policy is always wrong: no advantage moves it
            "actor_rollout_ref.actor.recompute_old_log_probs=True",
            "algorithm.adv_estimator=grpo",
        ],
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "weight sync proved" in done.stderr and "digests of all tensors agree" in done.stderr
    rows = rows_of(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1, 2]
    for row in rows[1:]:
        assert row["actor/grad_norm"] > 0
        assert row["rollout/log_prob_diff/max"] < 1e-4  # every step samples from the weights it was synced
    assert "val/acc/mean@2" in rows[0] and "val/acc/mean@2" in rows[2]
    assert len(rows_of(tmp_path / "rollouts" / "2.jsonl")) == 16


def test_training_runs_ahead_with_responses_that_are_frozen(assets: Path, tmp_path: Path) -> None:
    done = run_module(
        "verl.trainer.main_ppo",
        [
            *run_arguments(assets, tmp_path),
            *sglang_keys("actor_rollout_ref.rollout"),
            "actor_rollout_ref.rollout.gpu_memory_utilization=0.1",
            "actor_rollout_ref.rollout.in_flight_update=keep",
            "actor_rollout_ref.rollout.weight_sync_verify_every=1",
            "actor_rollout_ref.actor.entropy_coeff=0.1",
            "algorithm.adv_estimator=grpo",
            "algorithm.rollout_correction.rollout_is=token",
            "data.max_response_length=96",
            "trainer.max_staleness=1",
            "trainer.total_training_steps=5",
            "trainer.val_before_train=False",
        ],
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stderr.count("digests of all tensors agree") >= 5  # also with frozen requests in the server
    rows = rows_of(tmp_path / "metrics.jsonl")
    assert [row["staleness/max"] for row in rows if row["step"]] == [0, 1, 1, 1, 1]


def test_generation(assets: Path, tmp_path: Path) -> None:
    output = tmp_path / "answers.jsonl"
    done = run_module(
        "verl.trainer.main_generation",
        [
            f"model.path={assets}/policy_init",
            f"data.path={assets}/data/test.parquet",
            f"output={output}",
            "data.max_prompt_length=32",
            "data.max_response_length=24",
            "n_samples=2",
            "rollout.dtype=float32",
            "rollout.cpu_kvcache_gib=0.1",
            "rollout.gpu_memory_utilization=0.1",
            "trainer.device=cpu",
            *sglang_keys("rollout"),
        ],
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    rows = rows_of(output)
    assert len(rows) == 8
    assert all(len(row["responses"]) == 2 and set(row["finish_reasons"]) <= {"stop", "length"} for row in rows)
