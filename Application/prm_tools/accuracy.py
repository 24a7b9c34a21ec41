# SPDX-License-Identifier: Apache-2.0
"""How often each way of choosing is right, with 1, 2, 4, ... candidates. Numbers only."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from verl.rewards.ranking import (
    argmax,
    argmax_at,
    choose_subsets,
    majority,
    pass_at,
    sizes_up_to,
    vote_at,
    weighted_vote,
)

OVER_N = ("subsets", "first")


@dataclass(frozen=True)
class Ballot:
    """The candidates of one problem as a choice sees them.

    Args:
        keys: [M] answers, see `answer_key`.
        correct: [M].
        scores: [M] by aggregation, NaN for a candidate without a score.
    """

    keys: tuple[Hashable | None, ...]
    correct: tuple[bool, ...]
    scores: Mapping[str, tuple[float, ...]]

    def first(self, n: int) -> Ballot:
        """The first n candidates alone."""
        scores = {name: values[:n] for name, values in self.scores.items()}
        return Ballot(self.keys[:n], self.correct[:n], scores)


@dataclass(frozen=True)
class Method:
    """One way of choosing.

    Args:
        name: Of the method.
        style: Of its line in the chart.
        choose: Place of the candidate it takes; None where it takes none (mean, oracle).
        accuracy_at: Expected accuracy on one problem with n of its candidates, given the subsets of that size.
    """

    name: str
    style: str
    choose: Callable[[Ballot], int] | None
    accuracy_at: Callable[[Ballot, int, np.ndarray], float]


@dataclass(frozen=True)
class Curve:
    """Accuracy over N of one method.

    Args:
        accuracy: [n].
        standard_error: [n], over problems.
    """

    accuracy: list[float]
    standard_error: list[float]


def methods_for(aggregations: Sequence[str]) -> list[Method]:
    """List the methods that given scores allow.

    Args:
        aggregations: Names of scores in the ballots.
    """
    plain = [
        Method("mean", ":", None, lambda ballot, n, subsets: float(np.mean(ballot.correct))),
        Method(
            "majority",
            "--",
            lambda ballot: majority(ballot.keys),
            lambda ballot, n, subsets: vote_at(ballot.keys, ballot.correct, subsets),
        ),
        Method("oracle", ":", None, lambda ballot, n, subsets: pass_at(ballot.correct, n)),
    ]
    return plain + [method for name in aggregations for method in (_best_of(name), _vote(name))]


def curves(
    ballots: Sequence[Ballot], methods: Sequence[Method], over_n: str, max_subsets: int, seed: int
) -> tuple[list[int], dict[str, Curve]]:
    """Work out the accuracy of every method over N.

    Args:
        ballots: One per problem.
        methods: The methods.
        over_n: `subsets`: the mean over all n-subsets of a problem's candidates, unbiased; `first`: the first n.
        max_subsets: Votes go over so many random subsets where there are more.
        seed: Of the random ones.

    Returns:
        The sizes, up to the fewest candidates of any problem, and a curve per method.
    """
    sizes = sizes_up_to(min(len(ballot.correct) for ballot in ballots))
    found: dict[str, Curve] = {method.name: Curve([], []) for method in methods}
    for n in sizes:
        seen = [ballot.first(n) for ballot in ballots] if over_n == "first" else ballots
        subsets = {total: choose_subsets(total, n, max_subsets, seed) for total in {len(b.correct) for b in seen}}
        for method in methods:
            values = [method.accuracy_at(ballot, n, subsets[len(ballot.correct)]) for ballot in seen]
            found[method.name].accuracy.append(float(np.mean(values)))
            error = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0.0
            found[method.name].standard_error.append(float(error))
    return sizes, found


def _best_of(name: str) -> Method:
    return Method(
        f"best of N ({name})",
        "-",
        lambda ballot: argmax(ballot.scores[name]),
        lambda ballot, n, subsets: argmax_at(ballot.scores[name], ballot.correct, n),
    )


def _vote(name: str) -> Method:
    return Method(
        f"weighted vote ({name})",
        "--",
        lambda ballot: weighted_vote(ballot.keys, ballot.scores[name]),
        lambda ballot, n, subsets: vote_at(ballot.keys, ballot.correct, subsets, ballot.scores[name]),
    )
