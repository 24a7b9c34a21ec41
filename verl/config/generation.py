# SPDX-License-Identifier: Apache-2.0
"""Root of `main_generation`: prompts, a model, and how it answers them. Knows nothing of training and grading."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from verl.config.fields import free_mapping, limited, path_field
from verl.config.names import DeviceName, Truncation
from verl.config.problems import Problem
from verl.config.rollout import ServingConfig
from verl.config.serving_checks import ServingNeeds, find_serving_problems
from verl.config.trainer import RayKwargsConfig

OUTPUT_SUFFIXES = (".parquet", ".jsonl")


@dataclass(frozen=True, kw_only=True)
class GenerationModelConfig:
    """The model that answers."""

    path: str = path_field("")
    """Local folder or hub id (`org/name`) of a causal language model in HF format. Required."""
    tokenizer_path: str | None = path_field()
    """Folder or hub id of the tokenizer; null = `path`."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model."""
    custom_chat_template: str | None = None
    """Jinja text that replaces the tokenizer's chat template; null = the tokenizer's own."""


@dataclass(frozen=True, kw_only=True)
class GenerationDataConfig:
    """Which prompts, and how they become tokens."""

    path: tuple[str, ...] = path_field(())
    """Parquet or JSONL files, one path or a list; other columns are copied to the output. Required."""
    prompt_key: str = "prompt"
    """Column that holds the prompt: a text, or chat messages."""
    system_message: str | None = None
    """System message put before every prompt that has none of its own; null = none."""
    max_samples: int = limited(-1, low=1, or_value=-1)
    """Use only the first rows; -1 = all. Unit: rows."""
    max_prompt_length: int = limited(1024, low=1)
    """Longest prompt after the chat template. Unit: tokens."""
    max_response_length: int = limited(4096, low=1)
    """Longest response; generation stops there. Unit: tokens."""
    truncation: Truncation = "error"
    """What happens to a prompt over `max_prompt_length`: stop, or cut it on the left, right or in the middle."""
    apply_chat_template_kwargs: Mapping[str, Any] = free_mapping()
    """Extra arguments for the tokenizer's chat template, e.g. `{enable_thinking: false}`."""


@dataclass(frozen=True, kw_only=True)
class GenerationRolloutConfig(ServingConfig):
    """Servers and sampling."""

    gpu_memory_utilization: float = limited(0.9, above=0.0, high=1.0)
    """Share of each device's memory given to a server (weights and KV cache)."""
    temperature: float = limited(1.0, low=0.0)
    """Sampling temperature; 0 = greedy."""
    top_p: float = limited(1.0, above=0.0, high=1.0)
    """Nucleus sampling; 1 = off."""
    top_k: int = limited(-1, low=1, or_value=-1)
    """Sample from the k likeliest tokens; -1 = off."""
    timeout_s: float = limited(3600.0, above=0.0)
    """Longest wait for all responses to one prompt. Unit: seconds."""


@dataclass(frozen=True, kw_only=True)
class GenerationRunConfig:
    """Devices and seed."""

    device: DeviceName = "auto"
    """Where the model runs; `auto` takes CUDA if there is any. On a CPU a device is one server with one thread."""
    nnodes: int = limited(1, low=1)
    """Nodes. Unit: nodes."""
    n_gpus_per_node: int = limited(1, low=1)
    """Devices per node; each group of `rollout.tensor_model_parallel_size` is one server. Unit: devices."""
    seed: int = limited(42, low=0)
    """Seed of the sampling: every response has its own, so the output does not hang on the number of servers."""
    dry_run: bool = False
    """Print the plan and stop before Ray starts."""

    @property
    def num_devices(self) -> int:
        """Devices in all."""
        return self.nnodes * self.n_gpus_per_node


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """Root of `verl.trainer.main_generation`."""

    model: GenerationModelConfig = field(default_factory=GenerationModelConfig)
    """The model."""
    data: GenerationDataConfig = field(default_factory=GenerationDataConfig)
    """Prompts."""
    n_samples: int = limited(1, low=1)
    """Responses per prompt. Unit: responses."""
    output: str = path_field("")
    """File written: the rows with their responses, parquet or JSONL by its suffix. Required."""
    rollout: GenerationRolloutConfig = field(default_factory=GenerationRolloutConfig)
    """Answering."""
    trainer: GenerationRunConfig = field(default_factory=GenerationRunConfig)
    """The run."""
    ray_kwargs: RayKwargsConfig = field(default_factory=RayKwargsConfig)
    """Ray."""

    def problems(self) -> list[Problem]:
        """List every mistake across sections."""
        longest = self.data.max_prompt_length + self.data.max_response_length
        needs = ServingNeeds("rollout", longest, self.trainer.n_gpus_per_node)
        return [*self._own_problems(), *find_serving_problems(self.rollout, needs)]

    def notices(self) -> list[str]:
        """List values that are read differently from how they look."""
        return []

    def _own_problems(self) -> Iterator[Problem]:
        if not self.model.path:
            yield Problem("model.path", "", "is required", "Name a local folder or a hub id org/name")
        if not self.data.path:
            yield Problem("data.path", "", "is required", "Name one or more parquet or JSONL files")
        if PurePath(self.output).suffix not in OUTPUT_SUFFIXES:
            allowed = f"must be a file name ending in {' or '.join(OUTPUT_SUFFIXES)}"
            yield Problem("output", self.output, allowed, "Name the file to be written, e.g. output=responses.parquet")
        if self.n_samples > 1 and self.rollout.temperature == 0.0:
            allowed = "greedy decoding gives the same answer every time"
            mend = "Set rollout.temperature above 0, or n_samples=1"
            yield Problem("n_samples", self.n_samples, allowed, mend, ("rollout.temperature",))
