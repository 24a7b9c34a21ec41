# SPDX-License-Identifier: Apache-2.0
"""Accuracy of several responses per prompt: mean@n, maj@n, pass@n. Pure functions over verdicts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class JudgedResponse:
    """One validation response.

    Args:
        uid: Identity of the prompt.
        data_source: Data source of the prompt.
        is_correct: The verifier's verdict.
        predicted: The answer found, None where there is none.
    """

    uid: str
    data_source: str
    is_correct: bool
    predicted: str | None


def majority_is_correct(group: Sequence[JudgedResponse]) -> bool:
    """Whether the most frequent answer is right.

    Args:
        group: All responses to one prompt, in sampling order.

    Returns:
        The verdict on the most frequent answer; among equally frequent ones the first seen wins. Responses without an
        answer do not vote; False when none votes.
    """
    votes: dict[str, int] = defaultdict(int)
    for response in group:
        if response.predicted is not None:
            votes[response.predicted] += 1
    if not votes:
        return False
    winner = max(votes, key=lambda answer: votes[answer])  # dicts keep first-seen order, max takes the first maximum
    return any(response.is_correct for response in group if response.predicted == winner)


def accuracy_metrics(responses: Sequence[JudgedResponse]) -> dict[str, float]:
    """Accuracies per data source and over all prompts.

    Args:
        responses: Judged responses of all prompts, in sampling order.

    Returns:
        `val/<source>/acc/{mean,maj,pass}@n`, with n the responses per prompt (the largest where it varies), and
        `val/acc/...` over all prompts together. Empty when there are no responses.
    """
    groups: dict[str, list[JudgedResponse]] = defaultdict(list)
    for response in responses:
        groups[response.uid].append(response)
    metrics: dict[str, float] = {}
    sources = sorted({response.data_source for response in responses})
    for source in sources:
        chosen = [group for group in groups.values() if group[0].data_source == source]
        metrics |= _of_groups(chosen, f"val/{source}/acc")
    if groups:
        metrics |= _of_groups(list(groups.values()), "val/acc")
    return metrics


def _of_groups(groups: Sequence[Sequence[JudgedResponse]], prefix: str) -> dict[str, float]:
    count = max(len(group) for group in groups)
    correct = [[response.is_correct for response in group] for group in groups]
    return {
        f"{prefix}/mean@{count}": float(np.mean([np.mean(row) for row in correct])),
        f"{prefix}/maj@{count}": float(np.mean([majority_is_correct(group) for group in groups])),
        f"{prefix}/pass@{count}": float(np.mean([any(row) for row in correct])),
    }
