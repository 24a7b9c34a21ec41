# SPDX-License-Identifier: Apache-2.0
"""Finds the final answer in a response and writes it in a plain form.

Text in, text out; every function is linear in its input, so a hostile response costs no more than a long one. Knows
nothing of truth or score.
"""

from __future__ import annotations

import re

_BOX_TOKEN = re.compile(r"\\(?:boxed|fbox)\s*\{|\\[{}\\]|[{}]")
_BARE_BOX = re.compile(r"\\boxed ([^\s{}$\\]+)")
_ANSWER_LINE = re.compile(r"(?i)\banswer\b[*_`]*\s*[:\uff1a]")
_DISPLAY = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"))
_TEXT_MACRO = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}")
_SPACING = re.compile(r"\\[,!;: ]|\\(?:quad|qquad|left|right|displaystyle)\b|~")
_DEGREE = re.compile(r"\^\s*\{?\s*\\circ\s*\}?|\u00b0")
_GROUPED = re.compile(r"^[+-]?[1-9]\d{0,2}(?:(?:,|\{,\})\d{3})+(?![\d,])")
_UNITS = re.compile(
    r"(?i)(?<=[\d}\s)])\s*(?:square|sq\.?|cubic)?\s*\b(?:degrees?|radians?|units?|cm|mm|km|m|meters?|metres?|centimeters?|inch(?:es)?"
    r"|in|feet|foot|ft|miles?|seconds?|minutes?|hours?|days?|weeks?|months?|years?|dollars?|cents?|percent"
    r"|points?|ways?|p\.?m\.?|a\.?m\.?)(?:\s*\^\s*\{?\d\}?)?\.?$"
)

# An answer longer than this is no answer: it is judged wrong without being parsed.
MAX_ANSWER_CHARS = 1000


def last_boxed(text: str) -> str | None:
    r"""Find the content of the last `\boxed{...}` (or `\fbox{...}`) whose braces balance.

    Escaped braces do not count. Of nested boxes the inner one is taken. `\boxed 5` without braces is accepted when
    there is no other.

    Args:
        text: Any text.

    Returns:
        What stands between the braces, or None where no box is complete.
    """
    open_marks: list[int | None] = []
    last_start, last_end = -1, -1
    for match in _BOX_TOKEN.finditer(text):
        mark = match.group()
        if mark == "{":
            open_marks.append(None)
        elif mark == "}":
            start = open_marks.pop() if open_marks else None
            if start is not None and start > last_start:
                last_start, last_end = start, match.start()
        elif mark[-1] == "{" and len(mark) > 2:
            open_marks.append(match.end())
    if last_start >= 0:
        return text[last_start:last_end]
    bare = _BARE_BOX.findall(text)
    return bare[-1] if bare else None


def last_answer_line(text: str) -> str | None:
    """Find what follows the last `Answer:` (any case, also bold, also a full-width colon).

    The value may begin on a later line; it ends with its line, but a display formula (`$$`, `\\[`) opened there is
    taken to its end.

    Args:
        text: Any text.

    Returns:
        The value with outer spaces removed, or None where there is no `Answer:` or nothing after it.
    """
    start = -1
    for match in _ANSWER_LINE.finditer(text):
        start = match.end()
    if start < 0:
        return None
    rest = text[start:].lstrip(" \t\r\n*_`")
    for opening, closing in (("$$", "$$"), (r"\[", r"\]")):
        end = rest.find(closing, len(opening)) if rest.startswith(opening) else -1
        if end > 0:
            return rest[: end + len(closing)]
    value = rest.split("\n", 1)[0].strip()
    return value or None


def plain_answer(answer: str) -> str:
    r"""Write an answer without its decoration: markdown, math delimiters, a box, a left side, units, digit grouping.

    `**$x = \boxed{1{,}234}$.**` becomes `1234`. What is not decoration is left alone.

    Args:
        answer: The answer as found; longer than `MAX_ANSWER_CHARS` it is cut there.

    Returns:
        The plain form, without white space but between digits (`3 4` is not `34`).
    """
    text = answer[:MAX_ANSWER_CHARS].replace(r"\$", "").replace("\u2212", "-").strip().strip("*_`").strip()
    text = last_boxed(text) or text
    text = _inside_math(text)
    text = text.replace("**", "").replace("`", "")
    text = _last_side(text)
    text = re.sub(r"\\[dt]frac\b", r"\\frac", text)
    text = _TEXT_MACRO.sub(r" \1", text)
    text = _SPACING.sub(" ", text)
    text = _DEGREE.sub("", text)
    text = re.sub(r"\\?[%$]", "", text).strip()
    text = text.rstrip(".,;:*").strip()
    text = _UNITS.sub("", text)
    text = _GROUPED.sub(lambda found: re.sub(r"[{},]", "", found.group()), text)
    text = re.sub(r"(?<=\d)\.0*$", "", text.rstrip(".,;"))
    return re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", text)


def _inside_math(text: str) -> str:
    """Take the first formula out of its delimiters; the words around it are explanation."""
    for opening, closing in _DISPLAY:
        start = text.find(opening)
        end = text.find(closing, start + len(opening)) if start >= 0 else -1
        if end > start + len(opening):
            return text[start + len(opening) : end]
    return text


def _last_side(text: str) -> str:
    """Of a chain of equations keep the last right side; inequalities stay whole."""
    if re.search(r"[<>\u2264\u2265\u2260]|\\(?:l|g|n)eq?\b", text):
        return text
    return text.rsplit("=", 1)[-1]
