# SPDX-License-Identifier: Apache-2.0
"""Demonstrations for supervised fine-tuning: prompt and response tokens, the response ending with EOS.

Knows no loss; that only response tokens are trained on follows from the two lists being apart.
"""

from __future__ import annotations

import logging
from typing import Literal, TypedDict

from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from verl.config.sft import SFTDataConfig
from verl.data.chat import Message, check_chat_template, read_messages, tokenize_prompts
from verl.data.rows import Row, bad_row, check_columns, read_rows
from verl.data.truncation import kept_spans
from verl.utils.errors import UserError

logger = logging.getLogger(__name__)

_MESSAGES = "messages"


class SFTRow(TypedDict):
    """One demonstration: `prompt_token_ids`, `response_token_ids` (EOS included), `index` of the row."""

    prompt_token_ids: list[int]
    response_token_ids: list[int]
    index: int


class SFTDataset(Dataset[SFTRow]):
    """All demonstrations of some files, in memory.

    A row has a prompt column (a text or messages) and a response column, or a `messages` column whose last message is
    the assistant's: that one is the response.

    Example:
        >>> dataset = SFTDataset(config.data, tokenizer, "train")
        >>> dataset[0]["response_token_ids"][-1] == tokenizer.eos_token_id
        True
    """

    def __init__(
        self, config: SFTDataConfig, tokenizer: PreTrainedTokenizerBase, split: Literal["train", "val"]
    ) -> None:
        """Read, check and tokenize.

        Args:
            config: Section `data` of the SFT trainer.
            tokenizer: The model's tokenizer.
            split: Which files.

        Raises:
            UserError: A file, column or row is not as needed; the tokenizer has no chat template or no EOS; a row is
                too long under `truncation=error`, or loses its whole response by cutting.
        """
        check_chat_template(tokenizer)
        if tokenizer.eos_token_id is None:
            raise UserError.for_key(
                "model.path", tokenizer.name_or_path, "this tokenizer has no EOS token", "Set its eos_token"
            )
        self._config = config
        self._key = f"data.{split}_files"
        rows = self._read(config.train_files if split == "train" else config.val_files)
        pairs = [self._pair(row) for row in rows]
        prompts = tokenize_prompts(tokenizer, [messages for messages, _ in pairs], rows, self._key, {})
        responses = tokenizer([response for _, response in pairs], add_special_tokens=False)["input_ids"]
        self.num_truncated = 0
        self._rows = [
            self._fit(
                SFTRow(prompt_token_ids=prompt, response_token_ids=[*ids, tokenizer.eos_token_id], index=index), row
            )
            for index, (row, prompt, ids) in enumerate(zip(rows, prompts, responses, strict=True))
        ]
        logger.info(
            "%s: %d demonstrations, %d cut to %d tokens",
            self._key,
            len(self._rows),
            self.num_truncated,
            config.max_length,
        )

    def __len__(self) -> int:
        """Count the demonstrations."""
        return len(self._rows)

    def __getitem__(self, place: int) -> SFTRow:
        """Hand out one demonstration.

        Args:
            place: Its place.

        Returns:
            The demonstration.
        """
        return self._rows[place]

    def _read(self, files: tuple[str, ...]) -> list[Row]:
        rows = read_rows(files, self._key, ())
        for row in rows:
            if _MESSAGES not in row.values:
                check_columns(row.values, (self._config.prompt_key, self._config.response_key), row.place, self._key)
        return rows

    def _pair(self, row: Row) -> tuple[list[Message], str]:
        """Read the messages of the prompt, and the response."""
        if self._config.prompt_key not in row.values:
            messages = read_messages(row, _MESSAGES, self._key)
            if len(messages) < 2 or messages[-1]["role"] != "assistant":
                raise bad_row(row, self._key, "the last of the 'messages' must be the assistant's answer")
            return messages[:-1], messages[-1]["content"]
        response = row.values.get(self._config.response_key)
        if not isinstance(response, str):
            raise bad_row(row, self._key, f"{self._config.response_key!r} must be a text")
        return read_messages(row, self._config.prompt_key, self._key), response

    def _fit(self, sample: SFTRow, row: Row) -> SFTRow:
        """Cut a demonstration to the length limit, as one sequence."""
        num_prompt = len(sample["prompt_token_ids"])
        sequence = sample["prompt_token_ids"] + sample["response_token_ids"]
        limit, truncation = self._config.max_length, self._config.truncation
        if len(sequence) <= limit:
            return sample
        if truncation == "error":
            raise UserError.for_key(
                "data.max_length",
                limit,
                f"{row.place} has {len(sequence)} tokens and data.truncation=error",
                "Raise the limit, or set data.truncation to left, right or middle",
            )
        places = [place for start, end in kept_spans(len(sequence), limit, truncation) for place in range(start, end)]
        response = [sequence[place] for place in places if place >= num_prompt]
        if not response:
            raise bad_row(
                row, self._key, f"its prompt alone has {num_prompt} tokens, cutting to {limit} leaves no response"
            )
        self.num_truncated += 1
        return SFTRow(
            prompt_token_ids=[sequence[place] for place in places if place < num_prompt],
            response_token_ids=response,
            index=sample["index"],
        )
