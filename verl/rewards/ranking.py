# SPDX-License-Identifier: Apache-2.0
"""Choosing one answer out of N: by score, by vote, by both; and how often that is right with fewer candidates.

Everything that chooses returns a candidate's place, and the first seen wins ties. `*_at` functions give the expected
accuracy of a choice among n of the M candidates, over all subsets of that size: unbiased, where "the first n" would
depend on the order in which they happened to be sampled. Knows no file, no model and no problem.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Sequence

import numpy as np

from verl.rewards.credit import aggregate
from verl.rewards.scores.answers import plain_answer
from verl.rewards.scores.equivalence import exact_value

Numbers = Sequence[float] | np.ndarray

AGGREGATIONS = ("last", "min", "mean", "prod")


def answer_key(answer: str | None) -> Hashable | None:
    """Bring answers that mean the same to one key: numbers by value, everything else by its plain form.

    Args:
        answer: The answer as found in a response, None where there is none.

    Returns:
        The key; None for no answer (such a candidate has no vote).
    """
    plain = plain_answer(answer) if answer else ""
    value = exact_value(plain)
    return value if value is not None else plain or None


def aggregate_steps(step_scores: Numbers, aggregation: str) -> float:
    """Turn a response's step scores into one number, NaN without steps (it was not scored: it must not win).

    Args:
        step_scores: [K].
        aggregation: `last`, `min`, `mean` or `prod`.

    Raises:
        ValueError: The aggregation is unknown.
    """
    scores = np.asarray(step_scores, dtype=np.float64)
    value = aggregate(scores, aggregation)
    return value if len(scores) else math.nan


def argmax(scores: Numbers) -> int:
    """Return the place of the best score.

    Args:
        scores: [N], at least one; NaN never wins while there is a number.
    """
    values = np.asarray(scores, dtype=np.float64)
    return int(np.argmax(np.where(np.isnan(values), -np.inf, values)))


def majority(keys: Sequence[Hashable | None]) -> int:
    """Return the place of the first candidate that gives the commonest answer.

    Args:
        keys: [N] answers, see `answer_key`; None has no vote. With no vote at all the first candidate is chosen.
    """
    return weighted_vote(keys, np.ones(len(keys)))


def weighted_vote(keys: Sequence[Hashable | None], weights: Numbers) -> int:
    """Return the place of the first candidate whose answer has the greatest sum of weights.

    Args:
        keys: [N] answers; None has no vote.
        weights: [N], NaN counts as 0. Negative weights speak against an answer: vote with probabilities where possible.
    """
    sums: dict[Hashable, float] = {}
    first: dict[Hashable, int] = {}
    for place, (key, weight) in enumerate(zip(keys, weights, strict=True)):
        if key is not None:
            sums[key] = sums.get(key, 0.0) + (0.0 if math.isnan(weight) else float(weight))
            first.setdefault(key, place)
    if not sums:
        return 0
    best = max(sums.values())
    # sums of the same weights in another order differ in their last bits, which must not decide a tie
    return min(first[key] for key, value in sums.items() if math.isclose(value, best, rel_tol=1e-9, abs_tol=1e-12))


def pass_at(correct: Sequence[bool], n: int) -> float:
    """Return the share of n-subsets that hold a right candidate: the oracle's accuracy, pass@n.

        1 - C(wrong, n) / C(M, n)                         Chen et al. 2021 (arXiv 2107.03374), equation 1

    Args:
        correct: [M].
        n: Size of the subsets, 1 to M.
    """
    total = len(correct)
    _check_size(n, total)
    wrong = total - int(np.count_nonzero(correct))
    return 1.0 - math.comb(wrong, n) / math.comb(total, n)


def argmax_at(scores: Numbers, correct: Sequence[bool], n: int) -> float:
    """Return the share of n-subsets whose best-scored candidate is right.

    The candidate of rank r (0 the best; ties and NaN rank by place, as in `argmax`) is the best of C(M - 1 - r, n - 1)
    of the C(M, n) subsets.

    Args:
        scores: [M].
        correct: [M].
        n: Size of the subsets, 1 to M.
    """
    total = len(scores)
    _check_size(n, total)
    values = np.asarray(scores, dtype=np.float64)
    order = np.argsort(-np.where(np.isnan(values), -np.inf, values), kind="stable")
    right = sum(math.comb(total - 1 - rank, n - 1) for rank, place in enumerate(order) if correct[place])
    return right / math.comb(total, n)


def vote_at(
    keys: Sequence[Hashable | None],
    correct: Sequence[bool],
    subsets: np.ndarray,
    weights: Numbers | None = None,
) -> float:
    """Return the share of subsets in which a vote chooses a right candidate.

    Args:
        keys: [M] answers.
        correct: [M].
        subsets: [S, n] places, rising in each row; see `choose_subsets`.
        weights: [M] for a weighted vote, None for a majority.
    """
    votes = np.ones(len(keys)) if weights is None else np.asarray(weights, dtype=np.float64)
    chosen = [row[weighted_vote([keys[place] for place in row], votes[row])] for row in subsets]
    return float(np.mean([bool(correct[place]) for place in chosen]))


def choose_subsets(total: int, n: int, limit: int = 1000, seed: int = 0) -> np.ndarray:
    """List the n-subsets of `total` candidates: all of them, or `limit` random ones where there are more.

    Args:
        total: M.
        n: Size of the subsets, 1 to M.
        limit: Most subsets.
        seed: Of the random ones.

    Returns:
        [S, n] int64, rising in each row.
    """
    _check_size(n, total)
    if math.comb(total, n) <= limit:
        return np.array(list(itertools.combinations(range(total), n)), dtype=np.int64)
    generator = np.random.default_rng(seed)
    return np.sort([generator.choice(total, n, replace=False) for _ in range(limit)], axis=1).astype(np.int64)


def sizes_up_to(total: int) -> list[int]:
    """Return 1, 2, 4, ... and `total` itself.

    Args:
        total: Number of candidates, at least 1.
    """
    powers = [1 << power for power in range(total.bit_length())]
    return powers if powers[-1] == total else [*powers, total]


def _check_size(n: int, total: int) -> None:
    if not 1 <= n <= total:
        raise ValueError(f"n={n}: must be from 1 to the number of candidates, {total}")
