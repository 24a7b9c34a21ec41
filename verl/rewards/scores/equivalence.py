# SPDX-License-Identifier: Apache-2.0
"""Whether two written answers mean the same.

Plain numbers are compared exactly here; everything else goes to math-verify. math-verify's own time limits are signals,
which need a main thread: they are off, and the caller must run this in a worker that can be killed.
"""

from __future__ import annotations

import logging
import re
from fractions import Fraction

from math_verify import LatexExtractionConfig, parse, verify

from verl.rewards.scores.answers import MAX_ANSWER_CHARS, plain_answer

# math-verify warns in every process that its time limits are off; that is on purpose (see above).
logging.getLogger("math_verify").setLevel(logging.ERROR)

# More digits than any answer has, few enough for exact arithmetic to be instant.
_MAX_DIGITS = 200
_NUMBER = re.compile(r"([+-]?)(\d+)(?:\.(\d+))?")
_FRACTION = re.compile(r"([+-]?\d+)/(\d+)|([+-]?)\\frac\{([+-]?\d+)\}\{(\d+)\}")
# The whole answer is read as one formula; searching for numbers within words would accept "35 (or 34)" for 34.
_LATEX = (LatexExtractionConfig(),)


def exact_value(plain: str) -> Fraction | None:
    """Read an integer, a decimal or a fraction of integers.

    Args:
        plain: An answer as `plain_answer` writes it.

    Returns:
        Its value, or None where it is anything else, has a zero denominator or more than 200 characters.
    """
    if len(plain) > _MAX_DIGITS:
        return None
    if _NUMBER.fullmatch(plain):
        return Fraction(plain)
    found = _FRACTION.fullmatch(plain)
    if not found:
        return None
    numerator = found[1] or found[3] + found[4]
    denominator = int(found[2] or found[5])
    if denominator == 0 or numerator[:2] in ("--", "+-", "-+", "++"):
        return None
    return Fraction(int(numerator), denominator)


def is_equivalent(answer: str, truth: str) -> bool:
    """Judge whether an answer means the truth.

    Equal plain forms are equal; two plain numbers are compared exactly; the rest is parsed and compared by math-verify.

    Args:
        answer: The answer as found in the response.
        truth: The true answer.

    Returns:
        True where they mean the same. An empty answer, or one over `MAX_ANSWER_CHARS`, never does.
    """
    if not answer.strip() or len(answer) > MAX_ANSWER_CHARS:
        return False
    plain, plain_truth = plain_answer(answer), plain_answer(truth)
    if plain == plain_truth:
        return plain != "" or answer.strip() == truth.strip()
    value, true_value = exact_value(plain), exact_value(plain_truth)
    if value is not None and true_value is not None:
        return value == true_value
    return _parsed_equal(answer, truth) or _parsed_equal(plain, plain_truth)


def _parsed_equal(answer: str, truth: str) -> bool:
    parsed_truth = _parse(truth)
    return bool(parsed_truth) and verify(parsed_truth, _parse(answer), timeout_seconds=None)


def _parse(text: str) -> list[object]:
    inner = text.strip()
    for mark in ("$$", "$"):
        inner = inner.removeprefix(mark).removesuffix(mark)
    return parse(f"${inner}$", extraction_config=_LATEX, fallback_mode="no_fallback", parsing_timeout=None)
