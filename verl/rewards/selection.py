# SPDX-License-Identifier: Apache-2.0
"""Offline data selection by score: which trajectories are kept for training (ReasonFlux-PRM, arXiv 2506.18896).

The paper scores trajectories with Eq. 11 and keeps the best. Knows no file and no model: numbers and names in, places
out.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class SelectionRule:
    """What is kept. Each limit works on what the one before it has left, in this order; None means no such limit.

    Args:
        threshold: Least score.
        per_prompt: Best trajectories of each prompt.
        quota: Best trajectories of each source, by its name.
        default_quota: The same for sources that `quota` does not name.
        top_k: Best trajectories of all.
    """

    threshold: float | None = None
    per_prompt: int | None = None
    quota: Mapping[str, int] = field(default_factory=dict)
    default_quota: int | None = None
    top_k: int | None = None

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing."""
        limits = {"per_prompt": self.per_prompt, "default_quota": self.default_quota, "top_k": self.top_k}
        for name, limit in (limits | {f"quota {source}": limit for source, limit in self.quota.items()}).items():
            if limit is not None and limit < (0 if "quota" in name else 1):
                raise ValueError(f"{name}={limit}: too small")
        if self.threshold is not None and np.isnan(self.threshold):
            raise ValueError("threshold must be a number")


@dataclass(frozen=True)
class Selection:
    """What was kept.

    Args:
        kept: [k] int64 places, rising.
        dropped: How many each limit took away: `unscored`, `threshold`, `per_prompt`, `quota`, `top_k`.
    """

    kept: np.ndarray
    dropped: Mapping[str, int]


def select(
    scores: Sequence[float] | np.ndarray, prompts: Sequence[str], sources: Sequence[str], rule: SelectionRule
) -> Selection:
    """Choose trajectories.

    Args:
        scores: [S], NaN for a trajectory without a score: it is never kept.
        prompts: [S] identity of each trajectory's prompt.
        sources: [S] name of each trajectory's source.
        rule: The limits.

    Returns:
        The places kept, and what each limit dropped. Of equal scores the first is kept.
    """
    values = np.asarray(scores, dtype=np.float64)
    if not len(values) == len(prompts) == len(sources):
        raise ValueError(f"{len(values)} scores, {len(prompts)} prompts and {len(sources)} sources")
    kept = np.flatnonzero(~np.isnan(values))
    dropped = {"unscored": len(values) - len(kept)}

    def narrow(name: str, remaining: np.ndarray) -> np.ndarray:
        dropped[name] = len(kept) - len(remaining)
        return remaining

    if rule.threshold is not None:
        kept = narrow("threshold", kept[values[kept] >= rule.threshold])
    if rule.per_prompt is not None:
        kept = narrow("per_prompt", best_by_group(values, prompts, kept, Counter(), rule.per_prompt))
    if rule.quota or rule.default_quota is not None:
        kept = narrow("quota", best_by_group(values, sources, kept, rule.quota, rule.default_quota))
    if rule.top_k is not None:
        kept = narrow("top_k", np.sort(_best_first(values, kept)[: rule.top_k]))
    return Selection(kept, dropped)


def best_by_group(
    scores: np.ndarray,
    groups: Sequence[str],
    places: Iterable[int],
    limits: Mapping[str, int],
    default_limit: int | None,
) -> np.ndarray:
    """Keep the best of each group.

    Args:
        scores: [S] float64.
        groups: [S] names.
        places: The places to choose from.
        limits: Most places by group.
        default_limit: The same for groups that `limits` does not name; None for no limit.

    Returns:
        The places kept, rising.
    """
    taken: defaultdict[str, int] = defaultdict(int)
    kept = []
    for place in _best_first(scores, np.fromiter(places, dtype=np.int64)):
        group = groups[place]
        limit = limits[group] if group in limits else default_limit
        if limit is None or taken[group] < limit:
            taken[group] += 1
            kept.append(place)
    return np.sort(np.array(kept, dtype=np.int64))


def _best_first(scores: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Sort places by falling score; equal scores keep their order."""
    return places[np.argsort(-scores[places], kind="stable")]
