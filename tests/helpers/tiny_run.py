# SPDX-License-Identifier: Apache-2.0
"""A folder with everything a whole run needs: random tiny policy and PRM in the miniature's layout, and its data."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from recipe.miniature.data import Sizes, build, write
from recipe.miniature.models import save
from verl.rewards.prm.scorer import HFScorer
from verl.rewards.prm.selftest import PROBES_FILE
from verl.rewards.prm.spec import PRMSpec
from verl.rewards.prm.types import ScoreRequest

_WEIGHTS = "model.model."


def make_assets(folder: Path) -> Path:
    """Write `policy_init`, `prm_init` (with a probe it passes) and the parquet files; returns the folder."""
    save(str(folder), seed=0)
    write(build(Sizes(train=64, test=8, sft=8, prm=8, prm_test=8), seed=0), str(folder / "data"))
    _write_probe(folder / "prm_init")
    return folder


def run_arguments(assets: Path, output: Path) -> list[str]:
    """Arguments of a small run of `main_ppo`: 4 prompts x 4 responses, 2 steps, float32 on the CPU."""
    return [
        f"data.train_files={assets}/data/train.parquet",
        f"data.val_files={assets}/data/test.parquet",
        "data.train_batch_size=4",
        "data.max_prompt_length=32",
        "data.max_response_length=24",
        f"actor_rollout_ref.model.path={assets}/policy_init",
        "actor_rollout_ref.actor.ppo_mini_batch_size=4",
        "actor_rollout_ref.actor.use_kl_loss=True",
        "actor_rollout_ref.actor.optim.lr=1e-3",
        "actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype=float32",
        "actor_rollout_ref.ref.fsdp_config.model_dtype=float32",
        "actor_rollout_ref.ref.fsdp_config.mixed_precision.param_dtype=float32",
        "actor_rollout_ref.rollout.n=4",
        "actor_rollout_ref.rollout.dtype=float32",
        "actor_rollout_ref.rollout.max_num_seqs=32",
        "actor_rollout_ref.rollout.cpu_kvcache_gib=0.1",
        "actor_rollout_ref.rollout.val_kwargs.do_sample=True",
        "actor_rollout_ref.rollout.val_kwargs.temperature=1.0",
        "actor_rollout_ref.rollout.val_kwargs.n=2",
        "reward_model.num_verifier_workers=1",
        "reward_model.dtype=float32",
        "reward_model.cpu_kvcache_gib=0.1",
        "reward_model.max_num_seqs=32",
        "trainer.device=cpu",
        "trainer.n_gpus_per_node=1",
        "trainer.total_training_steps=2",
        "trainer.total_epochs=100",
        f"trainer.output_dir={output}",
        f"trainer.rollout_data_dir={output}/rollouts",
    ]


def with_prm(assets: Path) -> list[str]:
    """Further arguments: the PRM on a pool of its own, process supervision."""
    return [
        "reward_model.enable=True",
        "reward_model.enable_resource_pool=True",
        "reward_model.n_gpus_per_node=1",
        f"reward_model.model.path={assets}/prm_init",
        "algorithm.adv_estimator=grpo_ps",
    ]


def train(arguments: list[str], timeout_s: float = 400) -> subprocess.CompletedProcess[str]:
    """Run `main_ppo` in a process of its own, with a Ray cluster of its own."""
    command, environment = _command(arguments)
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, env=environment, check=False)


def start(arguments: list[str], log: IO[str]) -> subprocess.Popen[str]:
    """Start what `train` runs, with its output in a file."""
    command, environment = _command(arguments)
    return subprocess.Popen(command, text=True, env=environment, stdout=log, stderr=subprocess.STDOUT)


def _command(arguments: list[str]) -> tuple[list[str], dict[str, str]]:
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    environment["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])  # some runs name a helper of the tests
    return [sys.executable, "-m", "verl.trainer.main_ppo", *arguments], environment


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read a run's metrics or rollouts."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def saved_weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Read the policy's weights out of a checkpoint that FSDP2 ranks wrote, by the names they have in HF format."""
    folder = checkpoint / "actor"
    entries = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
    weights = {
        name.removeprefix(_WEIGHTS): torch.empty(entry.size)
        for name, entry in entries.items()
        if name.startswith(_WEIGHTS) and isinstance(entry, TensorStorageMetadata)
    }
    dcp.load({f"{_WEIGHTS}{name}": weight for name, weight in weights.items()}, checkpoint_id=folder, no_dist=True)
    return weights


def _write_probe(prm: Path) -> None:
    """A random PRM prefers some last step to another by chance; call the preferred one right."""

    async def score(last: str) -> float:
        scorer = HFScorer(PRMSpec(path=str(prm), dtype="float32", device="cpu"))
        await scorer.start()
        wrong, right = (await scorer(ScoreRequest("probe", "1+2+3", ("1+2=3", last)))).logits[-1]
        await scorer.close()
        return float(right - wrong)

    steps = sorted(("3+3=6", "9+3=7"), key=lambda step: asyncio.run(score(step)))
    probe = {"problem": "1+2+3", "right": ["1+2=3", steps[1]], "wrong": ["1+2=3", steps[0]]}
    (prm / PROBES_FILE).write_text(json.dumps(probe) + "\n")
