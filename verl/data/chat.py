# SPDX-License-Identifier: Apache-2.0
"""Chat messages of a row, and their tokens under a tokenizer's chat template. Knows no file and no batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

from verl.data.rows import Row, bad_row
from verl.utils.errors import UserError

Message = dict[str, Any]

_TOKENIZED_AT_ONCE = 1024


def read_messages(row: Row, column: str, key: str) -> list[Message]:
    """Read a prompt column: chat messages, or a text, which is one user message.

    Args:
        row: The row.
        column: The column's name.
        key: Configuration key that names the file, for messages.

    Returns:
        The messages, each with a `role` and a `content` of text.

    Raises:
        UserError: Neither a text nor a list of messages, or empty.
    """
    value = row.values.get(column)
    messages = [{"role": "user", "content": value}] if isinstance(value, str) else value
    if not isinstance(messages, list) or not messages or not all(_is_message(message) for message in messages):
        problem = f"{column!r} must be a text, or a list of messages with 'role' and 'content' as texts"
        raise bad_row(row, key, problem)
    return [dict(message) for message in messages]


def check_chat_template(tokenizer: PreTrainedTokenizerBase, key: str = "actor_rollout_ref.model.path") -> None:
    """Refuse a tokenizer that cannot write a chat.

    Args:
        tokenizer: The policy's tokenizer.
        key: Configuration key that names it, for the message.

    Raises:
        UserError: It has no chat template.
    """
    if not tokenizer.chat_template:
        raise UserError.for_key(
            key,
            tokenizer.name_or_path,
            "this tokenizer has no chat template, so chat messages cannot become a prompt",
            "Use an instruct model, or put a chat_template.jinja beside its tokenizer.json",
        )


def tokenize_prompts(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[Message]],
    rows: Sequence[Row],
    key: str,
    template_kwargs: Mapping[str, Any],
) -> list[list[int]]:
    """Write every prompt with the chat template, up to where the assistant begins, and tokenize it.

    Args:
        tokenizer: The policy's tokenizer, with a chat template.
        prompts: The messages of each prompt.
        rows: The row of each prompt, for messages.
        key: Configuration key that names the files, for messages.
        template_kwargs: Further arguments of the chat template.

    Returns:
        Token ids of each prompt.

    Raises:
        UserError: The template refuses a prompt, or a prompt becomes no token at all.
    """
    texts = []
    for messages, row in zip(prompts, rows, strict=True):
        try:
            text = tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=True, **template_kwargs
            )
        except (jinja2.TemplateError, TypeError) as error:
            raise bad_row(row, key, f"the tokenizer's chat template refuses these messages: {error}") from error
        texts.append(text)
    token_ids: list[list[int]] = []
    for start in range(0, len(texts), _TOKENIZED_AT_ONCE):
        # The template writes the special tokens itself.
        token_ids += tokenizer(texts[start : start + _TOKENIZED_AT_ONCE], add_special_tokens=False)["input_ids"]
    for ids, row in zip(token_ids, rows, strict=True):
        if not ids:
            raise bad_row(row, key, "the prompt becomes no token at all")
    return token_ids


def _is_message(message: object) -> bool:
    return (
        isinstance(message, Mapping)
        and isinstance(message.get("role"), str)
        and isinstance(message.get("content"), str)
    )
