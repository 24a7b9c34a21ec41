# SPDX-License-Identifier: Apache-2.0
"""Prompts for reinforcement learning: rows in the DAPO schema, read, checked and tokenized before anything starts.

Knows nothing of rollouts and rewards; the truth and the data source are carried along unread.
"""

from __future__ import annotations

import json
import logging
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from verl.config.data import DataConfig
from verl.data.chat import Message, check_chat_template, read_messages, tokenize_prompts
from verl.data.rows import Row, bad_row, read_rows
from verl.data.truncation import truncate
from verl.utils.errors import UserError

logger = logging.getLogger(__name__)

EXPECTED_TOKENS = "expected_response_tokens"
"""Key of `extra_info`: how long a response to the row is expected to be, for `rollout.submit_longest_first`. Unit:
tokens."""


class PromptRow(TypedDict):
    """One prompt as the dataset hands it out.

    Keys: `prompt_token_ids` list[int]; `raw_prompt` the messages; `data_source`, `ground_truth` texts; `extra_info`
    the row's further fields; `index` the row's number over all files, from 0.
    """

    prompt_token_ids: list[int]
    raw_prompt: list[Message]
    data_source: str
    ground_truth: str
    extra_info: dict[str, Any]
    index: int


@dataclass(frozen=True)
class PromptSettings:
    """What is read, and how prompts are cut.

    Args:
        files: Parquet or JSONL files.
        files_key: Configuration key that names them, for messages.
        prompt_key: Column of the prompt.
        data_source_key: Column that chooses the scorer.
        max_prompt_length: Longest prompt after the chat template, in tokens.
        truncation: What is done with a longer one: `error` stops, the others cut there.
        filter_overlong: Leave longer ones out instead.
        max_samples: Use only so many rows; -1 for all.
        sample_seed: Draw those rows with this seed; None takes the first.
        template_kwargs: Further arguments of the chat template.
    """

    files: tuple[str, ...]
    files_key: str = "data.train_files"
    prompt_key: str = "prompt"
    data_source_key: str = "data_source"
    max_prompt_length: int = 512
    truncation: Literal["error", "left", "right", "middle"] = "error"
    filter_overlong: bool = False
    max_samples: int = -1
    sample_seed: int | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def for_training(cls, config: DataConfig, seed: int) -> PromptSettings:
        """Read the training files' settings from the configuration.

        Args:
            config: Section `data`.
            seed: Seed in force.

        Returns:
            The settings.
        """
        return cls._of(config, config.train_files, "data.train_files", config.train_max_samples, seed)

    @classmethod
    def for_validation(cls, config: DataConfig) -> PromptSettings:
        """Read the validation files' settings from the configuration.

        Args:
            config: Section `data`.

        Returns:
            The settings.
        """
        return cls._of(config, config.val_files, "data.val_files", config.val_max_samples, None)

    @classmethod
    def _of(
        cls, config: DataConfig, files: tuple[str, ...], key: str, max_samples: int, seed: int | None
    ) -> PromptSettings:
        return cls(
            files=files,
            files_key=key,
            prompt_key=config.prompt_key,
            data_source_key=config.reward_fn_key,
            max_prompt_length=config.max_prompt_length,
            truncation=config.truncation,
            filter_overlong=config.filter_overlong_prompts,
            max_samples=max_samples,
            sample_seed=seed if config.shuffle else None,
            template_kwargs=config.apply_chat_template_kwargs,
        )


@dataclass(frozen=True)
class PromptCounts:
    """What became of the rows: read, left out for their length, cut, kept."""

    rows: int
    filtered: int
    truncated: int
    kept: int


class RLDataset(Dataset[PromptRow]):
    """All prompts of some files, in memory.

    Example:
        >>> dataset = RLDataset(PromptSettings(files=("train.parquet",)), tokenizer)
        >>> dataset[0]["prompt_token_ids"]
        [12, 5, 9]
    """

    def __init__(self, settings: PromptSettings, tokenizer: PreTrainedTokenizerBase) -> None:
        """Read, check and tokenize.

        Args:
            settings: What to read.
            tokenizer: The policy's tokenizer.

        Raises:
            UserError: A file, column or row is not as needed; the tokenizer has no chat template; a prompt is too
                long under `truncation=error`; nothing is left after filtering.
        """
        check_chat_template(tokenizer)
        columns = (settings.prompt_key, settings.data_source_key, "reward_model")
        numbered = list(enumerate(read_rows(settings.files, settings.files_key, columns)))
        numbered = _choose(numbered, settings.max_samples, settings.sample_seed)
        rows = [row for _, row in numbered]
        prompts = [read_messages(row, settings.prompt_key, settings.files_key) for row in rows]
        tokens = tokenize_prompts(tokenizer, prompts, rows, settings.files_key, settings.template_kwargs)
        self._settings = settings
        self._rows: list[PromptRow] = []
        self.counts = self._keep(numbered, prompts, tokens)

    def __len__(self) -> int:
        """Count the prompts."""
        return len(self._rows)

    def __getitem__(self, place: int) -> PromptRow:
        """Hand out one prompt.

        Args:
            place: Its place among the prompts kept.

        Returns:
            The prompt.
        """
        return self._rows[place]

    @property
    def data_sources(self) -> set[str]:
        """Names of all data sources, to be checked against the scorers."""
        return {row["data_source"] for row in self._rows}

    def _keep(
        self, numbered: list[tuple[int, Row]], prompts: list[list[Message]], tokens: list[list[int]]
    ) -> PromptCounts:
        """Fill the rows, minding the length limit; returns the counts."""
        settings = self._settings
        filtered = truncated = 0
        for (index, row), messages, ids in zip(numbered, prompts, tokens, strict=True):
            if len(ids) > settings.max_prompt_length:
                if settings.filter_overlong:
                    filtered += 1
                    continue
                ids = _cut(ids, row, settings)
                truncated += 1
            self._rows.append(_prompt_row(index, row, messages, ids, settings))
        counts = PromptCounts(len(numbered), filtered, truncated, len(self._rows))
        logger.info(
            "%s: %d rows, %d left out and %d cut for being over %d tokens, %d prompts",
            settings.files_key,
            counts.rows,
            filtered,
            truncated,
            settings.max_prompt_length,
            counts.kept,
        )
        if not self._rows:
            raise UserError.for_key(
                "data.filter_overlong_prompts",
                True,
                f"all {filtered} rows of {settings.files_key} are over data.max_prompt_length="
                f"{settings.max_prompt_length} tokens (the shortest has {min(map(len, tokens))}), nothing is left",
                "Raise data.max_prompt_length",
            )
        return counts


def _choose(numbered: list[tuple[int, Row]], max_samples: int, seed: int | None) -> list[tuple[int, Row]]:
    """Take `max_samples` rows, in their order."""
    if max_samples < 0 or max_samples >= len(numbered):
        return numbered
    if seed is None:
        return numbered[:max_samples]
    chosen = random.Random(seed).sample(range(len(numbered)), max_samples)
    return [numbered[place] for place in sorted(chosen)]


def _cut(ids: list[int], row: Row, settings: PromptSettings) -> list[int]:
    if settings.truncation == "error":
        raise UserError.for_key(
            "data.max_prompt_length",
            settings.max_prompt_length,
            f"the prompt of {row.place} has {len(ids)} tokens and data.truncation=error",
            "Raise the limit, set data.filter_overlong_prompts=True, or set data.truncation to left, right or middle",
        )
    return truncate(ids, settings.max_prompt_length, settings.truncation)


def _prompt_row(index: int, row: Row, messages: list[Message], ids: list[int], settings: PromptSettings) -> PromptRow:
    data_source = row.values.get(settings.data_source_key)
    if not isinstance(data_source, str) or not data_source:
        raise bad_row(row, settings.files_key, f"{settings.data_source_key!r} must be a text")
    reward_model = row.values.get("reward_model")
    if not isinstance(reward_model, Mapping) or reward_model.get("ground_truth") in (None, ""):
        raise bad_row(row, settings.files_key, "'reward_model' must hold a 'ground_truth'")
    extra_info = row.values.get("extra_info") or {}
    if not isinstance(extra_info, Mapping):
        raise bad_row(row, settings.files_key, "'extra_info' must be a mapping")
    expected = extra_info.get(EXPECTED_TOKENS)
    is_number = isinstance(expected, int | float) and not isinstance(expected, bool)
    if expected is not None and not (is_number and 0 < expected < math.inf):
        raise bad_row(row, settings.files_key, f"'extra_info.{EXPECTED_TOKENS}' must be a number of tokens above 0")
    return PromptRow(
        prompt_token_ids=ids,
        raw_prompt=messages,
        data_source=data_source,
        ground_truth=_as_text(reward_model["ground_truth"]),
        extra_info=dict(extra_info),
        index=index,
    )


def _as_text(truth: object) -> str:
    """Write a truth as text: numbers plainly, anything nested as JSON."""
    if isinstance(truth, str):
        return truth
    return json.dumps(truth, ensure_ascii=False, default=str)
