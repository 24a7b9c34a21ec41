# SPDX-License-Identifier: Apache-2.0
"""Looks for the files and local models that a configuration names. Of them it reads `config.json` only; it asks no hub.

Separate from the checks of values, so that a configuration can be composed on a machine without the data.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from verl.config.data import DataConfig
from verl.config.evaluation import EvaluationConfig
from verl.config.fsdp_checks import fsdp_model_problems, head_problems
from verl.config.generation import GenerationConfig, GenerationDataConfig
from verl.config.megatron_checks import megatron_model_problems
from verl.config.model_shape import ModelShape, read_shape
from verl.config.problems import Problem, nearest, raise_all
from verl.config.reward import CustomRewardFunctionConfig, RewardModelConfig
from verl.config.rollout import ServingConfig
from verl.config.root import PPOTrainerConfig
from verl.config.sft import PRMDataConfig, PRMTrainerConfig, SFTDataConfig, SFTTrainerConfig
from verl.config.sglang_checks import interpreter_problems

DATA_SUFFIXES = (".parquet", ".jsonl", ".json")
"""File types that the data room reads."""
Root = PPOTrainerConfig | SFTTrainerConfig | PRMTrainerConfig | GenerationConfig | EvaluationConfig

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_hub_id(path: str) -> bool:
    """Say whether a model path means a hub repository (`org/name` that is no local folder).

    Args:
        path: Value of a model key.

    Returns:
        True if the loader should ask the hub (or its cache).
    """
    return _HUB_ID.fullmatch(path) is not None and not Path(path).exists()


def check_files(config: Root) -> None:
    """Refuse a configuration that names files or local models which are not there.

    Args:
        config: A checked root.

    Raises:
        UserError: one message with every missing file. Hub ids are left to the loader.
    """
    raise_all(list(find_missing(config)))


def check_sizes(config: Root) -> None:
    """Refuse sizes that do not divide a model whose `config.json` lies on this machine.

    Args:
        config: A checked root.

    Raises:
        UserError: one message with every mistake.
    """
    raise_all(list(find_unfit(config)))


def find_unfit(config: Root) -> Iterator[Problem]:
    """List the keys that do not fit the models they are for, as far as those are on this machine.

    Args:
        config: A checked root.

    Yields:
        Every mistake found.
    """
    if isinstance(config, EvaluationConfig):
        return
    if isinstance(config, PPOTrainerConfig):
        policy = config.actor_rollout_ref
        shape, _ = read_shape(policy.model.path, policy.model.override_config)
        if shape is not None:
            yield from _sizes(config.data, policy.rollout, shape, "actor_rollout_ref.rollout")
            yield from fsdp_model_problems(policy, shape)
            yield from megatron_model_problems(policy, shape)
        yield from _prm_sizes(config.reward_model)
        return
    if isinstance(config, GenerationConfig):
        shape, _ = read_shape(config.model.path, {})
        if shape is not None:
            yield from _sizes(config.data, config.rollout, shape, "rollout")
        return
    shape, _ = read_shape(config.model.path, config.model.override_config)
    if shape is not None:
        yield from head_problems("ulysses_sequence_parallel_size", config.ulysses_sequence_parallel_size, shape)


def find_missing(config: Root) -> Iterator[Problem]:
    """List the files and local models that are not there, and what does not fit those that are.

    Args:
        config: A checked root.

    Yields:
        One problem per path or key.
    """
    if isinstance(config, PPOTrainerConfig):
        yield from _of_training(config)
    elif isinstance(config, GenerationConfig):
        yield from _of_generation(config)
    elif isinstance(config, EvaluationConfig):
        yield from _of_evaluation(config)
    else:
        yield from _train_and_val(config.data)
        yield from _model("model.path", config.model.path)
        yield from _tokenizer("model.tokenizer_path", config.model.tokenizer_path)
    yield from find_unfit(config)


def _of_training(config: PPOTrainerConfig) -> Iterator[Problem]:
    yield from _train_and_val(config.data)
    model = config.actor_rollout_ref.model
    yield from _model("actor_rollout_ref.model.path", model.path)
    yield from _tokenizer("actor_rollout_ref.model.tokenizer_path", model.tokenizer_path)
    yield from interpreter_problems(config.actor_rollout_ref.rollout, "actor_rollout_ref.rollout")
    if config.reward_model.enable:
        yield from _model("reward_model.model.path", config.reward_model.model.path)
    yield from _custom_function(config.custom_reward_function)
    resume = config.trainer.resume_from_path
    if resume is not None and not Path(resume).is_dir():
        yield _missing("trainer.resume_from_path", resume, "checkpoint folder")
    for name in ("output_dir", "default_local_dir", "rollout_data_dir", "validation_data_dir"):
        yield from _new_folder(f"trainer.{name}", getattr(config.trainer, name))


def _of_generation(config: GenerationConfig) -> Iterator[Problem]:
    for file in config.data.path:
        yield from _data_file("data.path", file)
    yield from _model("model.path", config.model.path)
    yield from _tokenizer("model.tokenizer_path", config.model.tokenizer_path)
    yield from interpreter_problems(config.rollout, "rollout")


def _of_evaluation(config: EvaluationConfig) -> Iterator[Problem]:
    for file in config.data.path:
        yield from _data_file("data.path", file)
    yield from _custom_function(config.custom_reward_function)


def _train_and_val(data: DataConfig | SFTDataConfig | PRMDataConfig) -> Iterator[Problem]:
    for key, files in (("data.train_files", data.train_files), ("data.val_files", data.val_files)):
        for file in files:
            yield from _data_file(key, file)


def _custom_function(custom: CustomRewardFunctionConfig) -> Iterator[Problem]:
    if custom.path is not None and not Path(custom.path).is_file():
        yield _missing("custom_reward_function.path", custom.path, "Python file")


def _data_file(key: str, file: str) -> Iterator[Problem]:
    path = Path(file)
    if "://" in file:
        yield Problem(key, file, "only local files are read", "Copy the file to this machine first")
    elif path.is_dir():
        held = sorted(entry.name for entry in path.iterdir() if entry.suffix in DATA_SUFFIXES)
        mend = f"Name a file in it, e.g. {path / held[0]}" if held else "Name a file"
        yield Problem(key, file, "is a folder", mend)
    elif not path.is_file():
        problem = _missing(key, file, "file")
        if key != "data.path" and not problem.mend.endswith("?"):
            problem = replace(problem, mend=f"{problem.mend}, or make it (examples/data_preprocess)")
        yield problem
    elif path.suffix not in DATA_SUFFIXES:
        yield Problem(key, file, f"allowed: {' | '.join(DATA_SUFFIXES)}", "Convert the file, or correct its suffix")


def _model(key: str, path: str) -> Iterator[Problem]:
    if is_hub_id(path):
        return
    folder = Path(path)
    if not folder.is_dir():
        yield _missing(key, path, "model folder (nor a hub id org/name)")
    elif not (folder / "config.json").is_file():
        held = "a checkpoint of this framework" if any(folder.glob("*.distcp")) else "no config.json"
        mend = "Name a folder in HF format (of a run: its hf/ folder)"
        yield Problem(key, path, f"holds {held}, so it is not a model in HF format", mend)


def _sizes(
    data: DataConfig | GenerationDataConfig, rollout: ServingConfig, shape: ModelShape, section: str
) -> Iterator[Problem]:
    longest = data.max_prompt_length + data.max_response_length
    if shape.max_positions is not None and longest > shape.max_positions:
        allowed = f"with data.max_prompt_length it exceeds the model's context of {shape.max_positions} tokens"
        mend = f"Set it to {max(1, shape.max_positions - data.max_prompt_length)} or less"
        yield Problem("data.max_response_length", data.max_response_length, allowed, mend)
    yield from head_problems(f"{section}.tensor_model_parallel_size", rollout.tensor_model_parallel_size, shape)


def _prm_sizes(prm: RewardModelConfig) -> Iterator[Problem]:
    shape, _ = read_shape(prm.model.path) if prm.enable else (None, "")
    if shape is not None:
        yield from head_problems("reward_model.tensor_model_parallel_size", prm.tensor_model_parallel_size, shape)


def _tokenizer(key: str, path: str | None) -> Iterator[Problem]:
    if path is not None and not is_hub_id(path) and not Path(path).is_dir():
        yield _missing(key, path, "tokenizer folder (nor a hub id org/name)")


def _new_folder(key: str, path: str | None) -> Iterator[Problem]:
    if path is None:
        return
    wanted = Path(path).absolute()
    there = next(folder for folder in (wanted, *wanted.parents) if folder.exists())
    if not there.is_dir():
        yield Problem(key, path, f"{there} is a file, so no folder can be made there", "Name another folder")
    elif not os.access(there, os.W_OK):
        yield Problem(key, path, f"{there} may not be written to", "Name another folder, or ask for the right")


def _missing(key: str, file: str, kind: str) -> Problem:
    path = Path(file)
    if not path.parent.is_dir():
        first = next(parent for parent in path.absolute().parents if parent.is_dir())
        return Problem(key, file, f"there is no such {kind}", f"The path exists up to {first} only, correct the rest")
    near = nearest(path.name, [entry.name for entry in path.parent.iterdir()])
    mend = f"Did you mean {path.parent / near}?" if near is not None else f"Put it there, or correct {key}"
    return Problem(key, file, f"there is no such {kind}", mend)
