# SPDX-License-Identifier: Apache-2.0
"""The miniature's problems: a chain of five one-digit numbers, worked out one operation per step.

    problem    4*3-9+8-3
    solution   4*3=12, 12-9=3, 3+8=11, 11-3=8, Answer: 8     (steps separated by blank lines)

Only the first operation may be a product, so working from left to right is what the notation means. Results stay within
0 and 20. Every step can be checked. Knows no file, tokenizer or model.
"""

from __future__ import annotations

import operator
import random
import re
from dataclasses import dataclass
from typing import Literal

NUM_OPERANDS = 5
SMALLEST, LARGEST = 0, 20
STEP_SEPARATOR = "\n\n"
ANSWER = "Answer: "

ErrorKind = Literal["arithmetic", "carry", "operand", "skip", "answer"]
ERROR_KINDS: tuple[ErrorKind, ...] = ("arithmetic", "carry", "operand", "skip", "answer")

_OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul}
_PROBLEM = re.compile(r"(\d)((?:[-+*]\d)+)")
_TERM = re.compile(r"([-+*])(\d)")
_STEP = re.compile(r"-?\d{1,6}[-+*]\d{1,6}=(-?\d{1,6})")
_MAX_TRIES = 20


@dataclass(frozen=True)
class Problem:
    """A chain of operations.

    Args:
        first: The first number.
        terms: Operation and number, one for each step.
    """

    first: int
    terms: tuple[tuple[str, int], ...]

    @property
    def text(self) -> str:
        """The problem as the policy sees it."""
        return str(self.first) + "".join(f"{sign}{number}" for sign, number in self.terms)

    @property
    def answer(self) -> int:
        """The true result."""
        return self.results()[-1]

    def results(self) -> list[int]:
        """Work out the true result of every step."""
        results, value = [], self.first
        for sign, number in self.terms:
            value = _OPERATIONS[sign](value, number)
            results.append(value)
        return results


@dataclass(frozen=True)
class Solution:
    """A worked solution.

    Args:
        steps: The steps' texts, the last one being the answer.
        kinds: The error made in each step, None where it follows from the step before.
    """

    steps: tuple[str, ...]
    kinds: tuple[ErrorKind | None, ...]

    @property
    def text(self) -> str:
        """The solution as the policy writes it."""
        return STEP_SEPARATOR.join(self.steps)


def draw_problem(rng: random.Random) -> Problem:
    """Draw a problem whose results stay small.

    Args:
        rng: Source of chance.

    Returns:
        The problem.
    """
    while True:
        terms = tuple((rng.choice("+-*" if k == 0 else "+-"), rng.randint(1, 9)) for k in range(NUM_OPERANDS - 1))
        problem = Problem(rng.randint(1, 9), terms)
        if all(SMALLEST <= result <= LARGEST for result in problem.results()):
            return problem


def parse_problem(text: str) -> Problem:
    """Read a problem.

    Args:
        text: The problem as the policy sees it.

    Returns:
        The problem.

    Raises:
        ValueError: It is not a chain of one-digit numbers.
    """
    found = _PROBLEM.fullmatch(text.strip())
    if not found:
        raise ValueError(f"not a chain of one-digit numbers: {text!r}")
    return Problem(int(found[1]), tuple((sign, int(digit)) for sign, digit in _TERM.findall(found[2])))


def solve(problem: Problem, rng: random.Random, error_rate: float, kinds: tuple[ErrorKind, ...] = ()) -> Solution:
    """Write a solution with errors.

    Each step goes wrong with probability `error_rate`; the steps after it go on from what it says, so they follow, but
    their results are usually not the true ones.

    Args:
        problem: The problem.
        rng: Source of chance.
        error_rate: Probability of an error in a step, 0 for a right solution.
        kinds: Kinds of error to draw from:
            `arithmetic` the result is off by 1 to 9; `carry` the step goes on from another number than the last
            result; `operand` the step uses another number than the problem's; `skip` the step leaves out one
            operation and does the next; `answer` the answer is not the last result.

    Returns:
        The solution.
    """
    steps: list[str] = []
    made: list[ErrorKind | None] = []
    value, place = problem.first, 0
    while place < len(problem.terms):
        possible = [kind for kind in kinds if _is_possible(kind, place, len(problem.terms))]
        kind = rng.choice(possible) if possible and rng.random() < error_rate else None
        place += kind == "skip"
        step, value = _write_step(value, problem.terms[place], kind, rng)
        steps.append(step)
        made.append(kind)
        place += 1
    is_wrong = "answer" in kinds and rng.random() < error_rate
    steps.append(f"{ANSWER}{_nearby(value, rng) if is_wrong else value}")
    made.append("answer" if is_wrong else None)
    return Solution(tuple(steps), tuple(made))


def check_steps(problem: str, response: str) -> list[bool]:
    """Judge every step of a response.

    A step is right when it does the operation that is next, on the result that the text before it states, and gets it
    right; so a step that follows correctly from a wrong one is right itself. The answer, which closes the whole, is
    right when it is the true one and no step is wrong; an answer without any steps is judged by its value alone.

    Args:
        problem: The problem's text.
        response: The response's text; empty pieces between blank lines are left out.

    Returns:
        One verdict for each piece between blank lines.
    """
    chain = parse_problem(problem)
    stated = chain.first
    verdicts: list[bool] = []
    for place, piece in enumerate(filter(None, map(str.strip, response.split(STEP_SEPARATOR)))):
        found = _STEP.fullmatch(piece)
        if piece.startswith(ANSWER.strip()):
            verdicts.append(all(verdicts) and piece.removeprefix(ANSWER.strip()).strip() == str(chain.answer))
        elif found is None or place >= len(chain.terms):
            verdicts.append(False)
        else:
            sign, number = chain.terms[place]
            verdicts.append(piece == f"{stated}{sign}{number}={_OPERATIONS[sign](stated, number)}")
            stated = int(found[1])
    return verdicts


def _is_possible(kind: ErrorKind, place: int, num_terms: int) -> bool:
    """Whether an error can be made in this step: the first has nothing to carry, the last nothing to skip to."""
    if kind == "answer":
        return False
    return not (kind == "carry" and place == 0) and not (kind == "skip" and place + 1 >= num_terms)


def _write_step(value: int, term: tuple[str, int], kind: ErrorKind | None, rng: random.Random) -> tuple[str, int]:
    """Write one step; returns its text and the result it states."""
    sign, number = term
    if kind == "carry":
        value = _nearby(value, rng)
    if kind == "operand":
        number = rng.choice([digit for digit in range(1, 10) if digit != number])
    result = _OPERATIONS[sign](value, number)
    if kind == "arithmetic":
        result = _nearby(result, rng)
    return f"{value}{sign}{number}={result}", result


def _nearby(value: int, rng: random.Random) -> int:
    """Another number, 1 to 9 away, within the bounds where the value is."""
    other = value
    for _ in range(_MAX_TRIES):
        other = value + rng.choice((-1, 1)) * rng.randint(1, 9)
        if SMALLEST <= other <= LARGEST:
            break
    return other
