# SPDX-License-Identifier: Apache-2.0
"""Checks of SFT and PRM training across sections. Opens no file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from verl.config.fsdp_checks import precision_problems, training_problems
from verl.config.problems import Problem

if TYPE_CHECKING:
    from verl.config.sft import PRMTrainerConfig, SFTTrainerConfig


def find_supervised_problems(config: SFTTrainerConfig | PRMTrainerConfig) -> list[Problem]:
    """Check a supervised run across sections.

    Args:
        config: The root, every value of the right type.

    Returns:
        Every mistake found.
    """
    problems = [*training_problems(config.model, "model"), *precision_problems(config.fsdp_config, "fsdp_config")]
    shared, batch = config.ulysses_sequence_parallel_size, config.data.train_batch_size
    if config.trainer.num_devices % shared:
        allowed = f"must divide the {config.trainer.num_devices} ranks"
        mend = f"Set it to a divisor of {config.trainer.num_devices}"
        problems.append(Problem("ulysses_sequence_parallel_size", shared, allowed, mend))
    ranks = max(1, config.trainer.num_devices // shared)
    if not config.model.path:
        mend = "Name a local folder or a hub id org/name"
        problems.append(Problem("model.path", "", "is required", mend))
    if not config.data.train_files:
        problems.append(Problem("data.train_files", "", "is required", "Name one or more parquet or JSONL files"))
    if batch % ranks:
        allowed = f"counts sequences over all ranks and must be a multiple of the {ranks} data-parallel ranks"
        mend = f"Set it to e.g. {-(-batch // ranks) * ranks}"
        problems.append(Problem("data.train_batch_size", batch, allowed, mend, ("trainer.n_gpus_per_node",)))
    budget = config.max_token_len_per_gpu
    if budget is not None and budget < config.data.max_length:
        allowed = f"one full sequence has data.max_length={config.data.max_length} tokens"
        problems.append(Problem("max_token_len_per_gpu", budget, allowed, "Raise it, or leave it out"))
    size, ranks = config.fsdp_config.fsdp_size, config.trainer.num_devices
    if size > 0 and ranks % size:
        mend = f"Set it to a divisor of {ranks}"
        problems.append(Problem("fsdp_config.fsdp_size", size, f"must divide the {ranks} ranks", mend))
    return problems


def find_prm_problems(config: PRMTrainerConfig) -> list[Problem]:
    """Check what only PRM training has.

    Args:
        config: The root, every value of the right type.

    Returns:
        Every mistake found.
    """
    problems, cut, rank = [], config.data.truncation, config.model.lora_rank
    if rank:
        allowed = "would leave the random score head frozen: all weights of a PRM are trained"
        problems.append(Problem("model.lora_rank", rank, allowed, "Set model.lora_rank=0"))
    if cut not in ("error", "right"):
        allowed = "would cut steps away from their labels; allowed: error | right"
        mend = "Set data.truncation=right, or a larger data.max_length"
        problems.append(Problem("data.truncation", cut, allowed, mend))
    return problems
