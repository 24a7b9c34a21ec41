# SPDX-License-Identifier: Apache-2.0
"""Grading a file of responses by rule: mean@n, pass@k, maj@k per data source and over all.

    mean@n   share of right responses, averaged over the prompts, with its standard error over the prompts
    pass@k   share of k-subsets of a prompt's n responses that hold a right one (unbiased)
    maj@k    share of k-subsets whose commonest answer is right; the first seen wins ties, no answer has no vote

Knows no model and no PRM; choosing by score is `Application/best_of_n.py`.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from verl.config import EvaluationConfig
from verl.config.evaluation import EvaluationDataConfig
from verl.data.rows import Row, bad_row, read_rows
from verl.rewards.loader import resolve_function
from verl.rewards.ranking import answer_key, choose_subsets, pass_at, sizes_up_to, vote_at
from verl.rewards.rule_pool import RuleVerifierPool
from verl.rewards.scores.registry import check_data_sources
from verl.rewards.types import RewardInput, RuleVerdict
from verl.utils.errors import UserError

RESPONSE_COLUMNS = ("responses", "response")
TRUTH_COLUMNS = ("ground_truth", "answer", "gt")
_KEY = "data.path"


@dataclass(frozen=True)
class AnsweredRow:
    """One prompt with its responses.

    Args:
        values: The row as it was read.
        data_source: Chooses the rule scorer.
        ground_truth: The true answer, as text.
        responses: [n] texts, at least one.
    """

    values: dict[str, Any]
    data_source: str
    ground_truth: str
    responses: tuple[str, ...]


@dataclass(frozen=True)
class GradedRow:
    """A prompt's responses with their verdicts, in the same order."""

    row: AnsweredRow
    verdicts: tuple[RuleVerdict, ...]

    @property
    def correct(self) -> list[bool]:
        """Which responses are right; one without a verdict is not."""
        return [verdict.is_correct for verdict in self.verdicts]

    def as_values(self) -> dict[str, Any]:
        """The row as it was read, with `is_correct` and `predicted` of each response."""
        return self.row.values | {
            "is_correct": self.correct,
            "predicted": [verdict.predicted for verdict in self.verdicts],
        }


def read_answered(config: EvaluationConfig) -> list[AnsweredRow]:
    """Read responses and true answers.

    Args:
        config: Names files and columns.

    Returns:
        The rows, in the order of the files.

    Raises:
        UserError: A file or row is not as needed, or no rule scorer has a row's data source.
    """
    rows = [_answered(row, config.data) for row in read_rows(config.data.path, _KEY, ())]
    if config.custom_reward_function.path is None:
        check_data_sources(row.data_source for row in rows)
    return rows


async def grade(config: EvaluationConfig, rows: Sequence[AnsweredRow]) -> list[GradedRow]:
    """Have every response judged in worker processes.

    Args:
        config: Verifier processes, and the user's own function.
        rows: The responses.

    Returns:
        Their verdicts, in the order of `rows`. A response that took too long has status `timeout`, and is not right.

    Raises:
        UserError: The user's function cannot be loaded.
    """
    custom = config.custom_reward_function
    function = resolve_function(custom.path, custom.name, custom.reward_kwargs)
    total = sum(len(row.responses) for row in rows)
    async with RuleVerifierPool(config.verifier.num_workers, config.verifier.timeout_s, function) as pool:
        with tqdm(total=total, desc="graded", unit="response", disable=None) as bar:

            async def judge(item: RewardInput) -> RuleVerdict:
                verdict = await pool.verify(item)
                bar.update()
                return verdict

            inputs = [_inputs(number, row) for number, row in enumerate(rows)]
            verdicts = await asyncio.gather(*(judge(item) for items in inputs for item in items))
    remaining = iter(verdicts)
    return [GradedRow(row, tuple(next(remaining) for _ in row.responses)) for row in rows]


def evaluate(graded: Sequence[GradedRow]) -> dict[str, Any]:
    """Compute all numbers.

    Args:
        graded: Judged responses, at least one row.

    Returns:
        `overall` and, below `sources`, each data source: `num_prompts`, `num_responses`, `mean@n`, `mean@n_stderr`,
        `pass@k` and (where any answer was found) `maj@k` for k = 1, 2, 4, ... n, `no_answer_share`, `unjudged_share`,
        and `truncated_share` and `response_tokens_mean` where the rows say so. n is the smallest number of responses
        that a prompt has.
    """
    by_source: dict[str, list[GradedRow]] = defaultdict(list)
    for entry in graded:
        by_source[entry.row.data_source].append(entry)
    return {
        "overall": _numbers(graded),
        "sources": {source: _numbers(entries) for source, entries in sorted(by_source.items())},
    }


def _numbers(graded: Sequence[GradedRow]) -> dict[str, float | int]:
    n = min(len(entry.verdicts) for entry in graded)
    verdicts = [verdict for entry in graded for verdict in entry.verdicts]
    means = np.array([np.mean(entry.correct) for entry in graded])
    spread = float(means.std(ddof=1)) if len(means) > 1 else 0.0
    keys = [[answer_key(verdict.predicted) for verdict in entry.verdicts] for entry in graded]
    numbers: dict[str, float | int] = {
        "num_prompts": len(graded),
        "num_responses": len(verdicts),
        f"mean@{n}": float(means.mean()),
        f"mean@{n}_stderr": spread / len(means) ** 0.5,
    }
    for k in sizes_up_to(n):
        numbers[f"pass@{k}"] = float(np.mean([pass_at(entry.correct, k) for entry in graded]))
    # a function of the user may name no answers, and without answers there is no vote
    for k in sizes_up_to(n) if any(key is not None for row in keys for key in row) else ():
        votes = [
            vote_at(key, entry.correct, choose_subsets(len(key), k)) for key, entry in zip(keys, graded, strict=True)
        ]
        numbers[f"maj@{k}"] = float(np.mean(votes))
    numbers["no_answer_share"] = float(np.mean([verdict.predicted is None for verdict in verdicts]))
    numbers["unjudged_share"] = float(np.mean([verdict.status != "scored" for verdict in verdicts]))
    return numbers | _of_generation([entry.row.values for entry in graded])


def _of_generation(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What `main_generation` says of its responses, where all rows have it."""
    numbers = {}
    if all(row.get("finish_reasons") for row in rows):
        reasons = [reason for row in rows for reason in row["finish_reasons"]]
        numbers["truncated_share"] = float(np.mean([reason == "length" for reason in reasons]))
    if all(row.get("num_response_tokens") for row in rows):
        numbers["response_tokens_mean"] = float(np.mean([n for row in rows for n in row["num_response_tokens"]]))
    return numbers


def _inputs(number: int, row: AnsweredRow) -> list[RewardInput]:
    return [
        RewardInput(
            uid=f"row {number}",
            index=index,
            data_source=row.data_source,
            prompt=[],
            response=response,
            token_starts=np.zeros(0, dtype=np.int64),
            num_tokens=0,
            truncated=False,
            ground_truth=row.ground_truth,
            extra_info=row.values.get("extra_info") or {},
        )
        for index, response in enumerate(row.responses)
    ]


def _answered(row: Row, data: EvaluationDataConfig) -> AnsweredRow:
    source = row.values.get(data.reward_fn_key) or data.data_source
    if not isinstance(source, str):
        raise UserError.for_key(
            "data.data_source",
            data.data_source,
            f"{row.place} has no {data.reward_fn_key!r} that names its rule scorer",
            "Name one for such rows, e.g. data.data_source=math500",
        )
    return AnsweredRow(row.values, source, _truth(row, data.ground_truth_key), _responses(row, data.response_key))


def _responses(row: Row, column: str | None) -> tuple[str, ...]:
    names = (column,) if column else RESPONSE_COLUMNS
    found = next((row.values[name] for name in names if row.values.get(name) is not None), None)
    texts = [found] if isinstance(found, str) else found
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise bad_row(row, _KEY, f"{' or '.join(map(repr, names))} must be a text or a list of texts, not empty")
    return tuple(texts)


def _truth(row: Row, column: str | None) -> str:
    model = row.values.get("reward_model")
    candidates = [row.values.get(name) for name in ((column,) if column else TRUTH_COLUMNS)]
    if column is None and isinstance(model, Mapping):
        candidates.insert(0, model.get("ground_truth"))
    truth = next((value for value in candidates if value not in (None, "")), None)
    if truth is None:
        where = repr(column) if column else f"reward_model.ground_truth, {', '.join(TRUTH_COLUMNS)}"
        raise bad_row(row, _KEY, f"it has no true answer ({where})")
    return str(truth)
