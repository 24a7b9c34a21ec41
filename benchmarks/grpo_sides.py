# SPDX-License-Identifier: Apache-2.0
"""The two sides of `grpo_step.py`: what both have to do, the command of each, and what each wrote about its steps."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

PEERS = Path(__file__).resolve().parent / "peers"
SIDES = ("verl", "trl")
DTYPES = ("float32", "bfloat16")
STAGES = {
    "rollout": "timing_s/gen",
    "old log-probs": "timing_s/old_log_prob",
    "wait for scores": "timing_s/wait_for_scores",
    "advantages": "timing_s/adv",
    "update": "timing_s/update_actor",
    "weight sync": "timing_s/update_weights",
}


@dataclass(frozen=True)
class Work:
    """What every side has to do.

    Args:
        model: Folder of the policy.
        prompts_file: JSONL of prompts.
        prompts: Prompts of a training step.
        samples: Responses to each.
        max_prompt: Longest prompt, tokens.
        max_response: Longest response, tokens.
        equal: Every response is as long as allowed.
        steps: Training steps.
        lr: Learning rate; so small that the untrained policy stays what it is.
        compiled: torch.compile in the update; TRL compiles anew in its first three steps.
    """

    model: str
    prompts_file: str
    prompts: int
    samples: int
    max_prompt: int
    max_response: int
    equal: bool
    steps: int
    lr: float = 1e-6
    compiled: bool = True


@dataclass(frozen=True)
class Run:
    """One way to do it.

    Args:
        side: `verl` or `trl`.
        dtype: Of forward and backward passes; weights are stored and updated in float32.
        processes: Data-parallel processes.
        threads: Threads of each.
    """

    side: str
    dtype: str
    processes: int
    threads: int

    @classmethod
    def parse(cls, text: str) -> Run:
        """Read SIDE:DTYPE:PROCESSESxTHREADS.

        Args:
            text: A run's name.

        Raises:
            ValueError: It is none.
        """
        try:
            side, dtype, spread = text.split(":")
            processes, threads = map(int, spread.split("x"))
        except ValueError as error:
            raise ValueError(f"{text!r}: a run is named SIDE:DTYPE:PROCESSESxTHREADS") from error
        if side not in SIDES or dtype not in DTYPES or processes < 1 or threads < 1:
            raise ValueError(f"{text!r}: sides are {', '.join(SIDES)}, dtypes {', '.join(DTYPES)}")
        if side == "verl" and threads != 1:
            raise ValueError(f"{text!r}: verl gives every process on a CPU one thread")
        return cls(side, dtype, processes, threads)

    @property
    def name(self) -> str:
        """As `parse` reads it."""
        return f"{self.side}:{self.dtype}:{self.processes}x{self.threads}"


@dataclass(frozen=True)
class Step:
    """One training step.

    Args:
        seconds: Of all of it.
        responses: Sampled.
        tokens: Sampled.
        stages: Seconds by stage.
    """

    seconds: float
    responses: int
    tokens: float
    stages: Mapping[str, float] = field(default_factory=dict)


def verl_command(work: Work, run: Run, folder: Path, further: Sequence[str] = ()) -> list[str]:
    """Give the command of our side.

    Args:
        work: What to do.
        run: How.
        folder: Output folder.
        further: KEY=VALUE arguments; they win.
    """
    actor, rollout = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
    arguments = {
        "trainer.device": "cpu",
        "trainer.n_gpus_per_node": run.processes,
        "trainer.total_training_steps": work.steps,
        "trainer.total_epochs": 1000,
        "trainer.val_before_train": False,
        "trainer.test_freq": 0,
        "trainer.save_freq": 0,
        "trainer.export_hf": False,
        "trainer.resume_mode": "disable",
        "trainer.logger": '["jsonl"]',
        "trainer.output_dir": folder,
        "data.train_files": work.prompts_file,
        "data.train_batch_size": work.prompts,
        "data.max_prompt_length": work.max_prompt,
        "data.max_response_length": work.max_response,
        "actor_rollout_ref.model.path": work.model,
        "actor_rollout_ref.model.enable_gradient_checkpointing": False,
        f"{actor}.optim.lr": work.lr,
        f"{actor}.use_torch_compile": work.compiled,
        f"{actor}.ppo_mini_batch_size": work.prompts,
        f"{actor}.fsdp_config.mixed_precision.param_dtype": run.dtype,
        f"{rollout}.dtype": run.dtype,
        f"{rollout}.n": work.samples,
        f"{rollout}.ignore_eos": work.equal,
        f"{rollout}.max_num_seqs": work.prompts * work.samples,
        f"{rollout}.cpu_kvcache_gib": 0.5,
        "algorithm.adv_estimator": "grpo",
        "reward_model.num_verifier_workers": 1,
        "custom_reward_function.path": PEERS / "digit_reward.py",
    }
    pairs = [f"{key}={value}" for key, value in arguments.items()]
    return [sys.executable, "-m", "verl.trainer.main_ppo", *pairs, *further]


def trl_settings(work: Work, run: Run, folder: Path) -> dict[str, Any]:
    """Give what `peers/trl_grpo.py` reads.

    Args:
        work: What to do.
        run: How.
        folder: For its files.
    """
    return asdict(work) | {"dtype": run.dtype, "threads": run.threads, "folder": str(folder)}


def trl_command(python: Path, run: Run, folder: Path) -> list[str]:
    """Give the command of TRL's side.

    Args:
        python: Interpreter of its environment.
        run: How.
        folder: Holds `settings.json`; gets `steps.json`.
    """
    program = [str(PEERS / "trl_grpo.py"), str(folder / "settings.json"), str(folder / "steps.json")]
    spread = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={run.processes}"]
    return [str(python), *(spread if run.processes > 1 else []), *program]


def read_verl(path: Path) -> list[Step]:
    """Read our steps.

    Args:
        path: metrics.jsonl of the run.
    """
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    steps = []
    for row in rows:
        seconds = row["timing_s/step"]
        responses = round(row["perf/samples_per_s"] * seconds)
        stages = {name: row[key] for name, key in STAGES.items()}
        steps.append(Step(seconds, responses, row["response/length/mean"] * responses, stages))
    return steps


def read_trl(path: Path) -> tuple[list[Step], dict[str, str]]:
    """Read TRL's steps.

    Args:
        path: What `peers/trl_grpo.py` wrote.

    Returns:
        The steps, and the versions of its packages.
    """
    found = json.loads(path.read_text(encoding="utf-8"))
    steps = []
    for row in found["steps"]:
        stages = {"rollout": row["generation_s"], "everything else": row["step_s"] - row["generation_s"]}
        steps.append(Step(row["step_s"], row["responses"], row["tokens"], stages))
    return steps, found["versions"]
