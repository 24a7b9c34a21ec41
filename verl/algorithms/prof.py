# SPDX-License-Identifier: Apache-2.0
"""PROF: which responses of a group are trained on, by how well process and outcome agree. Estimates no advantage."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from verl.algorithms.inputs import AdvantageInputs
from verl.algorithms.steps import STEP_COLUMNS, mean_step_scores, step_columns

PROF_COLUMNS = (*STEP_COLUMNS, "is_correct")
"""Attributes of `AdvantageInputs` that the filter reads."""


@dataclass(frozen=True)
class ProfSettings:
    """How many responses stay, and what counts against one.

    Attributes:
        keep: Responses kept per group; 0 keeps half, rounded up.
        format_penalty: Taken off the quality of a response with one step, or with `max_steps` or more.
        max_steps: Number of steps from which a response counts as cut to pieces; 0 sets no such limit.
    """

    keep: int = 0
    format_penalty: float = 1.0
    max_steps: int = 0


def prof_filter(inputs: AdvantageInputs, settings: ProfSettings) -> torch.Tensor:
    """Keep the right responses with good steps and the wrong ones with bad steps, as many of one kind as of the other.

        q_n  = mean_k s_{n,k} - format_penalty * 1[K_n = 1 or K_n >= max_steps]         (mean 0 without steps)

    Of m = `keep` places, the right responses get the upper half of m (an odd place is theirs) and the wrong ones the
    rest; what one kind cannot fill goes to the other. Within its kind a right response stays for a high q, a wrong one
    for a low q; of equal ones the first rows stay.

    What is defined besides:
        - A group of m or fewer is kept whole.
        - A group of one kind keeps its m most consistent responses (an outcome reward alone then gives advantage 0).
        - A group in which any response is unscored is kept whole: it is judged by its outcome alone.

    Args:
        inputs: Reads `step_scores`, `step_mask`, `is_scored`, `is_correct`, `group_index`.
        settings: See there.

    Returns:
        [S] bool, true on responses that stay.

    Raises:
        ValueError: A column it reads is missing.

    Source:
        PROF, arXiv 2509.03403: ranking right and wrong responses apart by the mean process reward (times the outcome's
        sign), the format penalty, and the balance of kinds. The paper leaves open which kind gets an odd place and
        what happens to a group of one kind. It then trains with GRPO on the outcome reward of what is kept.
    """
    inputs.require("is_correct")
    assert inputs.is_correct is not None
    scores, _, step_mask, _ = step_columns(inputs)
    num_steps = step_mask.sum(-1)
    is_malformed = num_steps == 1
    if settings.max_steps:
        is_malformed |= num_steps >= settings.max_steps
    quality = mean_step_scores(scores, step_mask) - settings.format_penalty * is_malformed
    is_correct = inputs.is_correct.bool()
    consistency = torch.where(is_correct, quality, -quality)
    is_kept = torch.ones_like(is_correct)
    for group in torch.unique(inputs.group_index):
        rows = torch.nonzero(inputs.group_index == group).flatten()
        is_judged = inputs.is_scored is None or bool(inputs.is_scored[rows].all())
        keep = settings.keep or (len(rows) + 1) // 2
        if is_judged and keep < len(rows):
            is_kept[rows] = _balanced(consistency[rows], is_correct[rows], keep)
    return is_kept


def _balanced(consistency: torch.Tensor, is_correct: torch.Tensor, keep: int) -> torch.Tensor:
    """Return [G] bool: the `keep` most consistent responses of a larger group, half of them right if there are."""
    right, wrong = int(is_correct.sum()), int((~is_correct).sum())
    places = min(right, max((keep + 1) // 2, keep - wrong))
    is_kept = torch.zeros_like(is_correct)
    for kind, count in ((is_correct, places), (~is_correct, keep - places)):
        rows = torch.nonzero(kind).flatten()
        is_kept[rows[torch.argsort(consistency[rows], descending=True, stable=True)[:count]]] = True
    return is_kept
