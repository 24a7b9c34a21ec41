# SPDX-License-Identifier: Apache-2.0
"""Which scorer grades which `data_source`. The only place that knows all scorers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from verl.rewards.scores.boxed import score_boxed, score_boxed_or_line
from verl.rewards.scores.dapo import score_dapo
from verl.rewards.scores.gsm8k import score_gsm8k
from verl.rewards.types import RuleVerdict
from verl.utils.errors import UserError

Scorer = Callable[[str, str, Mapping[str, Any]], RuleVerdict]

# Patterns in lower case, first match wins; `*` stands for anything.
_SCORERS: dict[str, Scorer] = {
    "math_dapo": score_dapo,
    "math_dapo_reasoning": score_dapo,
    "math": score_dapo,
    "*gsm8k": score_gsm8k,
    "*math-500": score_boxed,
    "*math500": score_boxed,
    "lighteval/math": score_boxed,
    "*math-lighteval": score_boxed,
    "*aime*": score_boxed_or_line,
    "*amc*": score_boxed_or_line,
}


def register_scorer(pattern: str, scorer: Scorer) -> None:
    """Add a scorer for a data source; it comes before the shipped ones.

    Args:
        pattern: Name of the data source, `*` standing for anything; case does not matter.
        scorer: Function of (response, ground_truth, extra_info), pure, giving a verdict.

    Raises:
        UserError: The same pattern is registered already.
    """
    key = pattern.lower()
    if key in _SCORERS:
        raise UserError.for_key("data_source", pattern, "a pattern can be registered once", "Use another name")
    shipped = dict(_SCORERS)
    _SCORERS.clear()
    _SCORERS.update({key: scorer, **shipped})


def known_data_sources() -> list[str]:
    """List the patterns with a scorer, in the order they are tried."""
    return list(_SCORERS)


def get_scorer(data_source: str) -> Scorer:
    """Find the scorer of a data source.

    Args:
        data_source: The row's `data_source`.

    Returns:
        Its scorer.

    Raises:
        UserError: No scorer is registered for it.
    """
    for pattern, scorer in _SCORERS.items():
        if fnmatchcase(data_source.lower(), pattern):
            return scorer
    raise UserError.for_key(
        "data_source",
        data_source,
        f"no rule scorer has this name; known are {', '.join(known_data_sources())} (* stands for anything)",
        "Rename the data source in the parquet file, or give custom_reward_function.path and .name",
    )


def check_data_sources(data_sources: Iterable[str]) -> None:
    """Refuse unknown data sources before anything is started.

    Args:
        data_sources: The `data_source` of every row.

    Raises:
        UserError: One of them has no scorer.
    """
    for data_source in sorted(set(data_sources)):
        get_scorer(data_source)


def default_compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Judge a response with the shipped scorer, in the form a custom reward function returns.

    For the user's own functions, which often start from the shipped score. It may take long on a hostile answer: call
    it where a time limit is kept, as custom reward functions are.

    Args:
        data_source: The row's `data_source`.
        solution_str: The response.
        ground_truth: The true answer.
        extra_info: The row's further fields.

    Returns:
        `score`, `acc` (whether it is correct) and `pred` (the answer found, or None).

    Raises:
        UserError: No scorer is registered for the data source.
    """
    verdict = get_scorer(data_source)(solution_str, ground_truth, extra_info or {})
    return {"score": verdict.score, "acc": verdict.is_correct, "pred": verdict.predicted}
