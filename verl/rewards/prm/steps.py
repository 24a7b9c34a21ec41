# SPDX-License-Identifier: Apache-2.0
"""Reasoning steps of a response: where its text is cut, and which token is each step's last.

Pure text and index arithmetic. Knows no PRM: what one is shown of a step is its adapter's matter.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Span = tuple[int, int]
THINK_END = "</think>"
_LABEL = re.compile(r"^(?:[#*\s]*step\s*\d+|\d+)\s*[.:)](?!\d)[\s#*]*")


@dataclass(frozen=True)
class SplitRule:
    """How a response is cut.

    Args:
        separator: Text that ends a reasoning step; the default is a blank line. A line end in it may be CRLF too.
        min_step_chars: A piece with less content joins its neighbour; 0 for no such limit.
        max_step_chars: A piece with more is cut again, at a line end or a space where there is one; 0 for no limit.
    """

    separator: str = "\n\n"
    min_step_chars: int = 0
    max_step_chars: int = 0

    def __post_init__(self) -> None:
        """Refuse a rule that cannot be followed."""
        if not self.separator:
            raise ValueError("separator must not be empty")
        if 0 < self.max_step_chars < self.min_step_chars:
            raise ValueError(f"max_step_chars={self.max_step_chars} is below min_step_chars={self.min_step_chars}")

    @property
    def pattern(self) -> str:
        """The separator as a regular expression."""
        return r"\r?\n".join(re.escape(line) for line in self.separator.replace("\r\n", "\n").split("\n"))


@dataclass(frozen=True)
class Steps:
    """The reasoning steps of one response.

    Args:
        spans: [K] character spans (start, end); they touch, and cover the whole text.
        ends: [K] int64, index of each step's last token: the last whose first character lies in the span.
    """

    spans: tuple[Span, ...]
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.spans)

    def pieces(self, text: str) -> tuple[str, ...]:
        """Return the steps' texts; joined they give `text` again.

        Args:
            text: The response they were found in.
        """
        return tuple(text[begin:end] for begin, end in self.spans)


def find_steps(text: str, token_starts: np.ndarray, rule: SplitRule) -> Steps:
    """Cut a response and find each reasoning step's last token.

    Args:
        text: Response text.
        token_starts: [T] int64, index of each token's first character, `len(text)` for tokens without text.
        rule: How to cut.

    Returns:
        The steps; none for a text without content. Ends rise strictly.
    """
    return map_to_tokens(split_text(text, rule), token_starts, len(text))


def split_text(text: str, rule: SplitRule) -> tuple[Span, ...]:
    """Cut a text behind each run of separators and behind each `</think>`.

    Blanks belong to the piece they end, at the very front to the piece they begin. A piece without content (nothing
    but blanks, separators and think tags) joins the one before it, but the next one where it is the first, or the
    first behind a `</think>`. Pieces below the minimum join their neighbour, but never over a `</think>`.

    Args:
        text: Response text.
        rule: How to cut.

    Returns:
        Spans that cover the text, none for a text without content.
    """
    separator = rule.pattern
    if not _content_chars(text, separator):
        return ()
    soft = {match.end() for match in re.finditer(f"(?:{separator})+", text)}
    hard = {match.end() for match in re.finditer(rf"{THINK_END}(?:\s|{separator})*", text)}
    borders = [0, *sorted((soft | hard) - {0, len(text)}), len(text)]
    pieces = [
        _Piece(begin, end, _content_chars(text[begin:end], separator), after_think=begin in hard)
        for begin, end in zip(borders, borders[1:], strict=False)
    ]
    spans = [(piece.begin, piece.end) for piece in _join_small(pieces, max(rule.min_step_chars, 1))]
    if rule.max_step_chars:
        spans = [part for span in spans for part in _cut_long(text, span, rule.max_step_chars)]
    return tuple(spans)


def map_to_tokens(spans: tuple[Span, ...], token_starts: np.ndarray, num_chars: int) -> Steps:
    """Find each span's last token; a span in which no token begins joins the one before it (the first, the next).

    Args:
        spans: Touching character spans that cover the text.
        token_starts: [T] int64, index of each token's first character, `num_chars` for tokens without text.
        num_chars: Length of the text.

    Returns:
        The spans that own a token, widened over those that own none, and their last tokens.
    """
    owning = np.flatnonzero(np.asarray(token_starts) < num_chars)
    if not spans or not len(owning):
        return Steps((), np.zeros(0, dtype=np.int64))
    span_ends = np.array([end for _, end in spans])
    step_of_token = np.searchsorted(span_ends, np.asarray(token_starts)[owning], side="right")
    last_in_run = np.append(step_of_token[1:] != step_of_token[:-1], True)
    owners = step_of_token[last_in_run]
    begins = [0, *(spans[step][0] for step in owners[1:]), num_chars]
    return Steps(tuple(zip(begins[:-1], begins[1:], strict=True)), owning[last_in_run].astype(np.int64))


def count_repeated(pieces: Sequence[str]) -> int:
    """Count the reasoning steps that say what an earlier one said: a policy that is paid per step repeats itself.

    Args:
        pieces: Texts of the steps; case, blanks and a leading number or "Step 3:" do not matter.

    Returns:
        How many could be left out without losing anything that was said.
    """
    said = [_LABEL.sub("", " ".join(piece.casefold().split())) for piece in pieces]
    told = [text for text in said if text]
    return len(told) - len(set(told))


@dataclass(frozen=True)
class _Piece:
    begin: int
    end: int
    content: int
    after_think: bool

    def join(self, following: _Piece) -> _Piece:
        return _Piece(self.begin, following.end, self.content + following.content, self.after_think)


def _content_chars(piece: str, separator: str) -> int:
    """Count characters, leaving out think tags, separators and blanks at both ends."""
    return len(re.sub(rf"</?think>|{separator}", "", piece).strip())


def _join_small(pieces: list[_Piece], least: int) -> list[_Piece]:
    """Join pieces of too little content: forward while a piece is too small, then its section's last one backward."""
    forward: list[_Piece] = []
    for piece in pieces:
        small_before = bool(forward) and forward[-1].content < least and not piece.after_think
        if forward and (small_before or not forward[-1].content or not (piece.content or piece.after_think)):
            forward[-1] = forward[-1].join(piece)
        else:
            forward.append(piece)
    backward: list[_Piece] = []
    for piece in forward:
        if backward and piece.content < least and not (piece.after_think and piece.content):
            backward[-1] = backward[-1].join(piece)
        else:
            backward.append(piece)
    return backward


def _cut_long(text: str, span: Span, most: int) -> list[Span]:
    """Cut a span into parts of at most `most` characters of content, none of them blank."""
    begin, end = span
    parts: list[Span] = []
    content_end = begin + len(text[begin:end].rstrip())
    content_begin = content_end - len(text[begin:content_end].lstrip())
    while content_end - content_begin > most:
        cut = _best_cut(text, content_begin, content_begin + most)
        parts.append((begin, cut))
        begin = cut
        content_begin = content_end - len(text[begin:content_end].lstrip())
    return [*parts, (begin, end)]


def _best_cut(text: str, begin: int, limit: int) -> int:
    """Return the place behind the last line end, else behind the last space, in the second half of a window."""
    half = begin + (limit - begin) // 2
    for blank in ("\n", " "):
        place = text.rfind(blank, half, limit)
        if place > begin:
            return place + 1
    return limit
