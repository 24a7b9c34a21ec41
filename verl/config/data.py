# SPDX-License-Identifier: Apache-2.0
"""Section `data`: which rows are read and how prompts become tokens. Does not know the model or the rollout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from verl.config.fields import free_mapping, limited, path_field
from verl.config.names import Truncation


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Prompts for training and validation (parquet or JSONL in the DAPO row schema)."""

    train_files: tuple[str, ...] = path_field(())
    """Training files, one path or a list. Required."""
    val_files: tuple[str, ...] = path_field(())
    """Validation files, one path or a list. Required unless validation is off (`test_freq<=0` and no
    `val_before_train`)."""
    prompt_key: str = "prompt"
    """Column that holds the prompt as chat messages."""
    reward_fn_key: str = "data_source"
    """Column whose value chooses the rule scorer."""
    max_prompt_length: int = limited(512, low=1)
    """Longest prompt after the chat template. Unit: tokens."""
    max_response_length: int = limited(512, low=1)
    """Longest response; generation stops there and the response counts as truncated. Unit: tokens."""
    train_batch_size: int = limited(1024, low=1)
    """Prompts per training step; each is answered `actor_rollout_ref.rollout.n` times. Unit: prompts."""
    val_batch_size: int | None = limited(None, low=1)
    """Prompts handed to the rollout servers at once in validation; null = all of them. Unit: prompts."""
    train_max_samples: int = limited(-1, low=1, or_value=-1)
    """Use only this many training rows (drawn with `data.seed` when `shuffle`); -1 = all. Unit: rows."""
    val_max_samples: int = limited(-1, low=1, or_value=-1)
    """Use only the first rows of the validation files; -1 = all. Unit: rows."""
    shuffle: bool = True
    """Draw the training prompts in a new random order in every epoch."""
    seed: int | None = None
    """Seed of the shuffling; null = `trainer.seed`."""
    filter_overlong_prompts: bool = False
    """Leave out prompts longer than `max_prompt_length` (counted in the log) instead of following `truncation`."""
    truncation: Truncation = "error"
    """What happens to a prompt over `max_prompt_length`: stop, or cut it on the left, right or in the middle
    (counted)."""
    apply_chat_template_kwargs: Mapping[str, Any] = free_mapping()
    """Extra arguments for the tokenizer's chat template, e.g. `{enable_thinking: false}`."""
    dataloader_num_workers: int = limited(0, low=0)
    """Processes that read rows ahead; 0 reads in the driver. Unit: processes."""
