# SPDX-License-Identifier: Apache-2.0
"""Roots of the two supervised trainers: SFT (warm start of a policy) and PRM training (step labels)."""

from __future__ import annotations

from dataclasses import dataclass, field

from verl.config.engine import FSDPConfig, OptimConfig
from verl.config.fields import limited, path_field
from verl.config.model import ModelConfig
from verl.config.names import DeviceName, LoggerName, Truncation
from verl.config.problems import Problem
from verl.config.supervised_checks import find_prm_problems, find_supervised_problems


def _supervised_optim() -> OptimConfig:
    return OptimConfig(lr=1e-5)


@dataclass(frozen=True, kw_only=True)
class SFTDataConfig:
    """Prompt and response pairs."""

    train_files: tuple[str, ...] = path_field(())
    """Training files (parquet or JSONL), one path or a list. Required."""
    val_files: tuple[str, ...] = path_field(())
    """Validation files; empty = none."""
    prompt_key: str = "prompt"
    """Column that holds the prompt: a text, or chat messages."""
    response_key: str = "response"
    """Column that holds the response text."""
    train_batch_size: int = limited(256, low=1)
    """Sequences per optimizer step, over all ranks. Unit: sequences."""
    max_length: int = limited(1024, low=1)
    """Longest prompt plus response. Unit: tokens."""
    truncation: Truncation = "error"
    """What happens to a row over `max_length` (counted)."""
    shuffle: bool = True
    """Draw the rows in a new random order in every epoch."""


@dataclass(frozen=True, kw_only=True)
class PRMDataConfig:
    """Problems with solution steps and one label per step."""

    train_files: tuple[str, ...] = path_field(())
    """Training files (JSONL or parquet), one path or a list. Required."""
    val_files: tuple[str, ...] = path_field(())
    """Validation files; empty = none."""
    prompt_key: str = "prompt"
    """Column that holds the problem: a text, or chat messages."""
    steps_key: str = "completions"
    """Column that holds the list of step texts."""
    labels_key: str = "labels"
    """Column that holds one label per step: true/false, or a probability of being right."""
    train_batch_size: int = limited(64, low=1)
    """Sequences per optimizer step, over all ranks. Unit: sequences."""
    max_length: int = limited(1024, low=1)
    """Longest problem plus steps. Unit: tokens."""
    truncation: Truncation = "error"
    """What happens to a row over `max_length` (counted); only `error` and `right` keep labels and steps together."""
    shuffle: bool = True
    """Draw the rows in a new random order in every epoch."""


@dataclass(frozen=True, kw_only=True)
class SupervisedTrainerConfig:
    """Length, devices, logs and checkpoints of a supervised run."""

    device: DeviceName = "auto"
    """Where the model runs; `auto` takes CUDA if there is any. On a CPU a device is one rank with one thread."""
    nnodes: int = limited(1, low=1)
    """Nodes. Unit: nodes."""
    n_gpus_per_node: int = limited(1, low=1)
    """Devices per node. Unit: devices."""
    total_epochs: int = limited(1, low=1)
    """Passes over the training files."""
    total_training_steps: int | None = limited(None, low=1)
    """Optimizer steps; null = `total_epochs` passes. Unit: training steps."""
    test_freq: int = limited(-1, low=0, or_value=-1)
    """Validate every so many steps (and after the last); 0 or -1 = only after the last. Unit: training steps."""
    save_freq: int = limited(-1, low=0, or_value=-1)
    """Save every so many steps; 0 or -1 = only after the last. Unit: training steps."""
    project_name: str = "verl"
    """Name of the project (wandb, default folders)."""
    experiment_name: str = "sft"
    """Name of the run (wandb, default folders)."""
    default_local_dir: str | None = path_field()
    """Folder of the run: metrics.jsonl, checkpoints, hf/; null = outputs/<project_name>/<experiment_name>."""
    logger: tuple[LoggerName, ...] = ("console",)
    """Where metrics go; metrics.jsonl is always written."""
    ray_wait_register_center_timeout: int = limited(300, low=1)
    """Longest wait for all training workers to start. Unit: seconds."""
    seed: int = limited(42, low=0)
    """Seed of everything random."""
    max_skipped_steps: int = limited(3, low=0)
    """Stop after so many steps in a row that were skipped because their gradients were not finite, and leave the model
    in `hf_stopped/`; 0 = never. Unit: training steps."""
    dry_run: bool = False
    """Print the plan and stop before Ray starts."""

    @property
    def run_dir(self) -> str:
        """Folder of the run in force."""
        return self.default_local_dir or f"outputs/{self.project_name}/{self.experiment_name}"

    @property
    def num_devices(self) -> int:
        """Ranks in all."""
        return self.nnodes * self.n_gpus_per_node


@dataclass(frozen=True, kw_only=True)
class SupervisedConfig:
    """What SFT and PRM training share."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The model that is trained."""
    optim: OptimConfig = field(default_factory=_supervised_optim)
    """Optimizer."""
    fsdp_config: FSDPConfig = field(default_factory=FSDPConfig)
    """Sharding."""
    grad_clip: float = limited(1.0, above=0.0)
    """Largest global gradient norm."""
    micro_batch_size_per_gpu: int | None = limited(None, low=1)
    """Most sequences in one forward/backward on one rank; null = no such limit. Unit: sequences."""
    max_token_len_per_gpu: int | None = limited(None, low=1)
    """Most tokens in one forward/backward on one rank; null = max(16384, `data.max_length`). Unit: tokens."""
    ulysses_sequence_parallel_size: int = limited(1, low=1)
    """Ranks that share one sequence (Ulysses). Must divide the ranks and the model's heads. Unit: ranks."""
    trainer: SupervisedTrainerConfig = field(default_factory=SupervisedTrainerConfig)
    """Run."""


@dataclass(frozen=True, kw_only=True)
class SFTTrainerConfig(SupervisedConfig):
    """Root of `verl.trainer.sft_trainer`."""

    data: SFTDataConfig = field(default_factory=SFTDataConfig)
    """Rows."""

    def problems(self) -> list[Problem]:
        """List every mistake across sections."""
        return find_supervised_problems(self)

    def notices(self) -> list[str]:
        """List values that are read differently from how they look."""
        return []


@dataclass(frozen=True, kw_only=True)
class PRMTrainerConfig(SupervisedConfig):
    """Root of PRM training."""

    data: PRMDataConfig = field(default_factory=PRMDataConfig)
    """Rows."""

    def problems(self) -> list[Problem]:
        """List every mistake across sections."""
        return [*find_supervised_problems(self), *find_prm_problems(self)]

    def notices(self) -> list[str]:
        """List values that are read differently from how they look."""
        return []
