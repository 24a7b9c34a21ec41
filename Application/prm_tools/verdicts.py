# SPDX-License-Identifier: Apache-2.0
"""Whether candidates are right, and what they answer: as the file says, or by the rule scorers of `verl.rewards`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from prm_tools.candidates import Candidate, Problem
from verl.rewards.rule_pool import RuleVerifierPool
from verl.rewards.scores.answers import last_answer_line, last_boxed
from verl.rewards.scores.registry import check_data_sources
from verl.rewards.types import RewardInput, RuleVerdict
from verl.utils.errors import UserError


@dataclass(frozen=True)
class Judgement:
    """What is known of one candidate.

    Args:
        is_correct: Whether it is right.
        answer: Its final answer, None where it gives none.
    """

    is_correct: bool
    answer: str | None


def judge_by_labels(problems: Sequence[Problem]) -> list[list[Judgement]]:
    """Take the labels of the file.

    Args:
        problems: Every candidate has a label.

    Returns:
        Judgements by problem and candidate. The answer is the one given, else the last box, else the last `Answer:`.
    """
    return [
        [Judgement(bool(candidate.label), _answer_of(candidate)) for candidate in problem.candidates]
        for problem in problems
    ]


def judge_by_rules(
    problems: Sequence[Problem], data_source: str | None, num_workers: int, timeout_s: float
) -> tuple[list[list[Judgement]], int]:
    """Judge every candidate with the rule scorer of its data source, in processes that can be killed.

    Args:
        problems: With true answers.
        data_source: Name of the rule scorer for all rows; None to take each row's own.
        num_workers: Processes.
        timeout_s: Longest time for one answer, seconds.

    Returns:
        Judgements by problem and candidate, and how many candidates had no verdict (they count as wrong).

    Raises:
        UserError: A problem has no true answer, or no rule scorer has its data source.
    """
    for problem in problems:
        if problem.truth is None:
            place = problem.candidates[0].place
            raise UserError.for_key("--truth-column", None, f"{place} has no true answer", "Name its column")
        if not (data_source or problem.data_source):
            place = problem.candidates[0].place
            raise UserError.for_key("--data-source", None, f"{place} has no data_source", "Name a rule scorer")
    check_data_sources(data_source or problem.data_source for problem in problems)
    verdicts = asyncio.run(_verify_all(problems, data_source, num_workers, timeout_s))
    judged = [
        [
            Judgement(verdict.is_correct, candidate.answer if candidate.answer is not None else verdict.predicted)
            for candidate, verdict in zip(problem.candidates, mine, strict=True)
        ]
        for problem, mine in zip(problems, verdicts, strict=True)
    ]
    return judged, sum(verdict.status != "scored" for mine in verdicts for verdict in mine)


async def _verify_all(
    problems: Sequence[Problem], data_source: str | None, num_workers: int, timeout_s: float
) -> list[list[RuleVerdict]]:
    total = sum(len(problem.candidates) for problem in problems)
    async with RuleVerifierPool(num_workers, timeout_s) as pool:
        with tqdm(total=total, desc="judged", unit="answer") as bar:

            async def verify(reward_input: RewardInput) -> RuleVerdict:
                verdict = await pool.verify(reward_input)
                bar.update()
                return verdict

            groups = [
                asyncio.gather(*(verify(_as_input(problem, data_source, n)) for n in range(len(problem.candidates))))
                for problem in problems
            ]
            return [list(group) for group in await asyncio.gather(*groups)]


def _as_input(problem: Problem, data_source: str | None, index: int) -> RewardInput:
    response = problem.candidates[index].response
    return RewardInput(
        uid=problem.candidates[index].place,
        index=index,
        data_source=data_source or problem.data_source,
        prompt=[{"role": "user", "content": problem.text}],
        response=response,
        token_starts=np.zeros(0, dtype=np.int64),
        num_tokens=0,
        truncated=False,
        ground_truth=str(problem.truth),
        extra_info=problem.extra_info,
    )


def _answer_of(candidate: Candidate) -> str | None:
    if candidate.answer is not None:
        return candidate.answer
    return last_boxed(candidate.response) or last_answer_line(candidate.response)
