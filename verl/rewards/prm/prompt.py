# SPDX-License-Identifier: Apache-2.0
"""Text on its way to a PRM: the problem out of a chat, a step without its separators, markup made harmless.

Knows tokenizers and chat templates; knows no model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from verl.utils.errors import UserError
from verl.utils.tokenizer import backend_of, encode_plain


def problem_of(messages: Sequence[Mapping[str, Any]]) -> str:
    """Return what the user asked: the text of the last user message, or of the last message where there is no user's.

    Args:
        messages: Chat messages with `role` and `content` (text, or a list of parts with `text`).
    """
    if not messages:
        return ""
    asked = [message for message in messages if message.get("role") == "user"] or list(messages)
    content = asked[-1].get("content", "")
    if isinstance(content, str):
        return content
    return "".join(str(part.get("text", "")) for part in content)


def strip_step(piece: str, separator: str) -> str:
    """Take separators and blanks off both ends of a piece.

    Args:
        piece: A reasoning step as it was written.
        separator: What separated it from its neighbours.

    Returns:
        What a PRM is shown of it.
    """
    mark = separator.strip()
    shown = piece.strip()
    while mark and (shown.startswith(mark) or shown.endswith(mark)):
        shown = shown.removeprefix(mark).removesuffix(mark).strip()
    return shown


def strip_end(piece: str, separator: str) -> str:
    """Take separators and blanks off the end of a piece, and leave its beginning.

    Args:
        piece: One or more reasoning steps as they were written.
        separator: What separates them.
    """
    mark = separator.strip()
    shown = piece.rstrip()
    while mark and shown.endswith(mark):
        shown = shown.removesuffix(mark).rstrip()
    return shown


class Escaper:
    """Breaks up, in a text, everything that the tokenizer would read as one of its special tokens.

    A policy can write `<extra_0>` letter by letter. Unbroken it would become a step of its own, and its score would
    push every later one out of place.
    """

    def __init__(self, tokenizer: Any, step_token: str = "", words: Sequence[str] = ()) -> None:
        """Collect the texts to be broken up.

        Args:
            tokenizer: The PRM's tokenizer.
            step_token: Text of its step token, where that is one of a kind.
            words: Texts of ordinary tokens that mean something to the PRM where they stand alone as a word.
        """
        added = backend_of(tokenizer).get_added_tokens_decoder().values()
        marks = {token.content for token in added if token.special} | {step_token}
        longest_first = sorted((mark for mark in marks if len(mark) > 1), key=len, reverse=True)
        patterns = [re.escape(mark) for mark in longest_first]
        patterns += [rf"(?<!\w){re.escape(word)}(?!\w)" for word in words]
        self._pattern = re.compile("|".join(patterns) or "(?!)")

    def __call__(self, text: str) -> str:
        """Put a space behind the first character of each special token's text.

        Args:
            text: Problem or reasoning step.

        Returns:
            The text; the same one where there was nothing to break up.
        """
        while self._pattern.search(text):
            text = self._pattern.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)
        return text


@dataclass(frozen=True)
class ChatFrame:
    """A chat around the assistant's words: the token ids before and after them."""

    before: list[int]
    after: list[int]


def frame_chat(tokenizer: Any, problem: str, system_message: str | None, placeholder: str) -> ChatFrame:
    """Render the chat with a placeholder for the assistant's words, so that no template can edit them.

    Args:
        tokenizer: The PRM's tokenizer, with a chat template.
        problem: The user's message, already escaped.
        system_message: The system's message; None leaves it to the template, which may put in its own.
        placeholder: Text that neither problem nor template hold.

    Returns:
        Token ids around the placeholder.
    """
    system = [{"role": "system", "content": system_message}] if system_message is not None else []
    messages = [*system, {"role": "user", "content": problem}, {"role": "assistant", "content": placeholder}]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False)
    before, found, after = rendered.rpartition(placeholder)
    if not found:
        raise UserError("the PRM's chat template leaves out the assistant's message: use the template it came with")
    first, last = encode_plain(tokenizer, [before, after])
    return ChatFrame(first, last)
