# SPDX-License-Identifier: Apache-2.0
"""Candidate answers of problems, out of a file in either layout, with whatever is known of each.

    wide    a row per problem: `responses` is a list; labels, answers and scores are lists beside it
    long    a row per response, as score.py writes them; rows with the same `problem_index`, without one those with the
            same problem, belong together

Knows no PRM and no rule.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prm_tools.columns import (
    GROUP_COLUMN,
    INDEX_COLUMN,
    PROBLEM_COLUMNS,
    RESPONSE_COLUMNS,
    RESPONSES_COLUMNS,
    Columns,
    UnusableRowError,
    answer_of,
    choose_column,
    problem_text,
)
from prm_tools.tables import Record, first_values, read_table
from verl.utils.errors import UserError

LAYOUTS = ("auto", "wide", "long")
KEY = "--candidates"
TRUTH_COLUMNS = ("ground_truth", "answer", "gt")


@dataclass(frozen=True)
class CandidateColumns:
    """What the user says of the columns; None means to look for the usual names, or to do without.

    Args:
        layout: `auto`, `wide` or `long`.
        problem: The problem.
        response: The response, or the list of responses.
        label: Whether a response is right.
        answer: The final answer of a response.
        score: A number per response, or its step scores.
        truth: The true answer.
        source: Name that selects the rule scorer.
        prefix: What score.py has put before its columns.
    """

    layout: str = "auto"
    problem: str | None = None
    response: str | None = None
    label: str | None = None
    answer: str | None = None
    score: str | None = None
    truth: str | None = None
    source: str = "data_source"
    prefix: str = ""


@dataclass(frozen=True)
class Candidate:
    """One response and what is known of it.

    Args:
        response: Its text.
        place: Where it stands.
        label: Whether it is right, None where that is not given.
        answer: Its final answer, None where that is not given.
        step_scores: Its scores by reasoning step, or one score; empty where it has none.
        traj_score: Score of the whole response, None where there is none.
    """

    response: str
    place: str
    label: bool | None = None
    answer: str | None = None
    step_scores: tuple[float, ...] = ()
    traj_score: float | None = None


@dataclass
class Problem:
    """One problem.

    Args:
        text: It.
        truth: The true answer, None where that is not given.
        data_source: Name that selects the rule scorer, empty where that is not given.
        extra_info: The row's further fields.
        candidates: In the order they were sampled.
    """

    text: str
    truth: str | None
    data_source: str
    extra_info: dict[str, Any]
    candidates: list[Candidate] = field(default_factory=list)


@dataclass(frozen=True)
class CandidateFile:
    """The problems of a file.

    Args:
        problems: Those with candidates.
        faults: Why other rows were left out.
    """

    problems: list[Problem]
    faults: list[str]


def find_layout(values: Mapping[str, Any], file: str, columns: CandidateColumns) -> Columns:
    """Find out where a file has problems and responses.

    Args:
        values: A row of it.
        file: The file, for messages.
        columns: What the user says of it.

    Returns:
        The columns; `responses` is empty in the long layout.

    Raises:
        UserError: A column is missing.
    """
    problem = choose_column(values, columns.problem, PROBLEM_COLUMNS, file, "--problem-column")
    usual = (*RESPONSES_COLUMNS, *RESPONSE_COLUMNS)
    response = choose_column(values, columns.response, usual, file, "--response-column")
    is_list = isinstance(values[response], list)
    is_wide = is_list if columns.layout == "auto" else columns.layout == "wide"
    return Columns(problem, "response", response) if is_wide else Columns(problem, response)


def read_candidates(file: str, columns: CandidateColumns) -> CandidateFile:
    """Read a file.

    Args:
        file: JSON Lines or parquet.
        columns: Where everything is.

    Returns:
        Its problems in their order, and the rows that could not be used.

    Raises:
        UserError: A column is missing, or no row can be used.
    """
    values = first_values(file, KEY)
    reader = _Reader(values, file, columns)
    problems: dict[object, Problem] = {}
    faults: list[str] = []
    for number, record in enumerate(read_table(file, KEY)):
        try:
            reader.add(record, number, problems)
        except UnusableRowError as error:
            faults.append(f"{record.place}: {error}")
    if not problems:
        raise UserError.for_key(KEY, file, f"no row can be used ({faults[0]})", "Mend the file")
    return CandidateFile(list(problems.values()), faults)


class _Reader:
    """Takes rows of one file apart."""

    def __init__(self, values: Mapping[str, Any], file: str, columns: CandidateColumns) -> None:
        self._columns = columns
        where = find_layout(values, file, columns)
        self._problem, self._response, self._is_wide = where.problem, where.response, bool(where.responses)
        if self._is_wide:
            self._response = where.responses
        for option in ("label", "answer", "score", "truth"):
            if getattr(columns, option):
                choose_column(values, getattr(columns, option), (), file, f"--{option}-column")

    def add(self, record: Record, number: int, problems: dict[object, Problem]) -> None:
        """Put a row's candidates where they belong; a row that cannot be used changes nothing."""
        if record.fault:
            raise UnusableRowError(record.fault)
        fault = record.values.get(f"{self._columns.prefix}prm_error")
        if fault and self._problem not in record.values:  # a row that score.py could not read either
            raise UnusableRowError(str(fault))
        text = problem_text(record.values, self._problem)
        candidates = list(self._wide(record) if self._is_wide else self._long(record))
        key: object = number if self._is_wide else record.values.get(GROUP_COLUMN, text)
        if key not in problems:
            problems[key] = self._new_problem(text, record.values)
        problems[key].candidates.extend(candidates)

    def _new_problem(self, text: str, values: Mapping[str, Any]) -> Problem:
        extra = values.get("extra_info")
        return Problem(
            text=text,
            truth=_truth_of(values, self._columns.truth),
            data_source=str(values.get(self._columns.source) or ""),
            extra_info=dict(extra) if isinstance(extra, Mapping) else {},
        )

    def _wide(self, record: Record) -> Iterator[Candidate]:
        responses = record.values[self._response]
        if not isinstance(responses, list) or not responses:
            raise UnusableRowError(f"{self._response!r} must be a list of responses that is not empty")
        for place, response in enumerate(responses):
            if not isinstance(response, str):
                raise UnusableRowError(f"{self._response!r} must hold texts, not {type(response).__name__}")
            yield self._candidate(record, response, place, len(responses))

    def _long(self, record: Record) -> Iterator[Candidate]:
        try:
            answer = answer_of(record.values, self._response)
        except UnusableRowError:
            if not isinstance(record.values.get(self._response), str):
                raise
            answer = ""  # an empty response is a candidate too: a wrong one
        index = record.values.get(INDEX_COLUMN)
        yield self._candidate(record, answer if isinstance(answer, str) else "\n\n".join(answer), index, None)

    def _candidate(self, record: Record, response: str, index: int | None, count: int | None) -> Candidate:
        """Build one candidate; `index` is its place in lists beside it, `count` their wanted length."""
        values, columns = record.values, self._columns
        label = _pick(values, columns.label, index, count)
        answer = _pick(values, columns.answer, index, count)
        own_steps, own_whole = f"{columns.prefix}step_scores", f"{columns.prefix}traj_score"
        is_own = columns.score is None and own_steps in values
        is_scored = is_own and not values.get(f"{columns.prefix}prm_error")
        steps: Any = ()
        if columns.score:
            steps = _pick(values, columns.score, index, count)
        elif is_scored:
            steps = values[own_steps] if count is None else _pick(values, own_steps, index, count)
        whole = _pick(values, own_whole, index, count) if is_scored and own_whole in values else None
        return Candidate(
            response=response,
            place=record.place if count is None else f"{record.place} response {index}",
            label=_as_label(label, columns.label),
            answer=None if answer is None else str(answer),
            step_scores=_as_numbers(steps, columns.score or own_steps),
            traj_score=None if whole is None else float(whole),
        )


def _pick(values: Mapping[str, Any], column: str | None, index: int | None, count: int | None) -> Any:
    """A candidate's part of a column: its place in a list that has one entry per candidate, or the value itself."""
    if column is None:
        return None
    value = values.get(column)
    if not isinstance(value, list) or index is None:
        return value
    if count is not None and len(value) != count:
        raise UnusableRowError(f"{column!r} has {len(value)} entries for {count} responses")
    if not 0 <= index < len(value):
        raise UnusableRowError(f"{column!r} has no entry {index}")
    return value[index]


def _as_label(value: Any, column: str | None) -> bool | None:
    if column is None:
        return None
    if not isinstance(value, bool | int | float) or value not in (0, 1):
        raise UnusableRowError(f"{column!r} must say true or false (or 1 or 0) of each response, not {value!r}")
    return bool(value)


def _as_numbers(value: Any, column: str) -> tuple[float, ...]:
    if value is None:
        return ()
    numbers: Sequence[Any] = value if isinstance(value, list | tuple) else [value]
    if not all(isinstance(number, int | float) for number in numbers):
        raise UnusableRowError(f"{column!r} must hold numbers, or lists of numbers")
    return tuple(float(number) for number in numbers)


def _truth_of(values: Mapping[str, Any], column: str | None) -> str | None:
    """The true answer: the column given, else where verl's rows have it, else a column of a usual name."""
    if column is None and isinstance(values.get("reward_model"), Mapping):
        nested = values["reward_model"].get("ground_truth")
        return None if nested is None else str(nested)
    names = (column,) if column else TRUTH_COLUMNS
    return next((str(values[name]) for name in names if values.get(name) is not None), None)
