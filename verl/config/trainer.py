# SPDX-License-Identifier: Apache-2.0
"""Sections `trainer` and `ray_kwargs`: length of the run, devices, logs, checkpoints. Does not know what is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from verl.config.fields import free_mapping, limited, path_field
from verl.config.names import DeviceName, LoggerName, ResumeMode


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """One training run."""

    device: DeviceName = "auto"
    """Where models run; `auto` takes CUDA if there is any. On a CPU a device is one rank with one thread."""
    nnodes: int = limited(1, low=1)
    """Nodes that hold the policy. Unit: nodes."""
    n_gpus_per_node: int = limited(8, low=1)
    """Policy devices per node (the pools of PRM and rollout servers come on top). Unit: devices."""
    total_epochs: int = limited(30, low=1)
    """Passes over the training files."""
    total_training_steps: int | None = limited(None, low=1)
    """Training steps; null = `total_epochs` passes. Unit: training steps."""
    val_before_train: bool = True
    """Validate the starting policy."""
    val_only: bool = False
    """Validate and stop."""
    test_freq: int = limited(-1, low=0, or_value=-1)
    """Validate every so many training steps (and after the last); 0 or -1 = never. Unit: training steps."""
    save_freq: int = limited(-1, low=0, or_value=-1)
    """Save every so many training steps and after the last; -1 = only after the last, 0 = never. Unit: training
    steps."""
    resume_mode: ResumeMode = "auto"
    """`auto`: go on from the newest checkpoint if there is one; `disable`: start anew; `resume_path`: from
    `resume_from_path`."""
    resume_from_path: str | None = path_field()
    """Checkpoint folder (`.../global_step_N`) to go on from, read when `resume_mode=resume_path`."""
    max_actor_ckpt_to_keep: int | None = limited(None, low=1)
    """Newest checkpoints kept, older ones are deleted; null = all."""
    export_hf: bool = True
    """After the last step write the policy in HF format to `<output_dir>/hf` (vLLM and transformers load it)."""
    project_name: str = "verl"
    """Name of the project (wandb, default folders)."""
    experiment_name: str = "grpo"
    """Name of the run (wandb, default folders)."""
    output_dir: str | None = path_field()
    """Folder of the run: metrics.jsonl, hf/; null = outputs/<project_name>/<experiment_name>."""
    default_local_dir: str | None = path_field()
    """Folder of the checkpoints (global_step_N); null = <output_dir>/checkpoints."""
    rollout_data_dir: str | None = path_field()
    """Folder for one JSONL file of rollouts per training step; null = none are written."""
    validation_data_dir: str | None = path_field()
    """Folder for one JSONL file of answers per validation; null = none are written."""
    logger: tuple[LoggerName, ...] = ("console",)
    """Where metrics go; `<output_dir>/metrics.jsonl` is always written."""
    balance_batch: bool = True
    """Give every rank about the same number of tokens."""
    ray_wait_register_center_timeout: int = limited(300, low=1)
    """Longest wait for all training workers to start. Unit: seconds."""
    seed: int = limited(42, low=0)
    """Seed of everything random (data order, sampling, initialisation)."""
    max_staleness: int = limited(0, low=0)
    """Training steps the rollout runs ahead: a response is trained on at most so many policy versions after it was
    begun; 0 = on-policy. Above 0 it needs `algorithm.rollout_correction`, and on GPUs
    `actor_rollout_ref.rollout.enable_resource_pool`. Unit: policy versions."""
    max_skipped_steps: int = limited(3, low=0)
    """Stop after so many training steps in a row in which every optimizer step was skipped because its gradients were
    not finite; 0 = never. Unit: training steps."""
    dry_run: bool = False
    """Print the plan (placement, batch arithmetic, memory) and stop before Ray starts."""

    @property
    def run_dir(self) -> str:
        """Folder of the run in force."""
        return self.output_dir or f"outputs/{self.project_name}/{self.experiment_name}"

    @property
    def checkpoint_dir(self) -> str:
        """Folder of the checkpoints in force."""
        return self.default_local_dir or f"{self.run_dir}/checkpoints"

    @property
    def num_devices(self) -> int:
        """Policy devices (ranks) in all."""
        return self.nnodes * self.n_gpus_per_node


@dataclass(frozen=True, kw_only=True)
class RayKwargsConfig:
    """How the driver joins or starts Ray."""

    ray_init: Mapping[str, Any] = free_mapping()
    """Arguments of `ray.init`, e.g. `{num_cpus: 8, address: auto}`."""
