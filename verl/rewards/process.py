# SPDX-License-Identifier: Apache-2.0
"""The reward manager for functions that judge reasoning steps themselves: their step scores stand in for a PRM's."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np

from verl.rewards.manager import register
from verl.rewards.naive import NaiveRewardManager
from verl.rewards.prm.steps import Span, Steps, map_to_tokens
from verl.rewards.types import RewardInput, RuleVerdict

STEP_TEXTS = "reasoning_steps"


@register("process")
class ProcessRewardManager(NaiveRewardManager):
    """Outcome only, and the `step_scores` of the user's function in place of a PRM's.

    The function finds the reasoning steps, as texts, in `extra_info["reasoning_steps"]`. It returns one number for each
    of them, or pairs (one past the step's last character, number) for steps of its own. Where it returns none, the PRM
    is asked; without a PRM the response has no step scores, and `reward_model.process_reward.on_error` decides. Without
    a function this is `naive`.

    Example:
        >>> verdict = RuleVerdict(1.0, True, step_scores=(0.9, 0.4))
        >>> ProcessRewardManager(ManagerSettings(is_custom=True)).reward(reward_input, verdict).rule_score
        1.0
    """

    name: ClassVar[str] = "process"

    @property
    def reads_step_scores(self) -> bool:
        """Whether there is a function that may give step scores."""
        return self.settings.is_custom


def with_step_texts(item: RewardInput, steps: Steps) -> RewardInput:
    """Show the function the reasoning steps.

    Args:
        item: A response.
        steps: Its reasoning steps.

    Returns:
        The response with the steps' texts in `extra_info`.
    """
    return replace(item, extra_info={**item.extra_info, STEP_TEXTS: list(steps.pieces(item.response))})


def own_steps(item: RewardInput, steps: Steps, verdict: RuleVerdict) -> tuple[Steps, np.ndarray]:
    """Lay the function's step scores out over the response.

    Args:
        item: The response.
        steps: Its reasoning steps as the function was shown them.
        verdict: With `step_scores`.

    Returns:
        The steps that are scored, and their scores [K] float32. Text behind the last of the function's own steps
        belongs to none.

    Raises:
        ValueError: Another number of scores than of steps, a character end outside the response, or a step of the
            function's own in which no token begins.
    """
    scores = np.array(verdict.step_scores, dtype=np.float32)
    if verdict.step_char_ends is None:
        if len(scores) != len(steps):
            raise ValueError(f"{len(scores)} step_scores for {len(steps)} reasoning steps")
        return steps, scores
    ends, num_chars = verdict.step_char_ends, len(item.response)
    if ends[-1] > num_chars:
        raise ValueError(f"a step ends at character {ends[-1]}, but the response has {num_chars}")
    tail: tuple[Span, ...] = ((ends[-1], num_chars),) if ends[-1] < num_chars else ()
    spans = tuple(zip((0, *ends[:-1]), ends, strict=True))
    mapped = map_to_tokens(spans + tail, item.token_starts, num_chars)
    if mapped.spans[: len(spans)] != spans:
        raise ValueError(f"no token begins in one of the steps that end at characters {list(ends)}")
    return Steps(spans, mapped.ends[: len(spans)]), scores
