# SPDX-License-Identifier: Apache-2.0
"""Reward managers: how a verdict becomes the outcome reward r_out, and the length penalty beside it.

Knows verdicts only; processes, PRMs and tensors are elsewhere. A manager is chosen by `reward_model.reward_manager`.
"""

from __future__ import annotations

import importlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from verl.rewards.types import RewardInput, RuleVerdict
from verl.utils.errors import UserError

# The shipped managers register themselves when their module is loaded.
_SHIPPED = {name: f"verl.rewards.{name}" for name in ("naive", "dapo", "batch", "prime", "process")}
_MANAGERS: dict[str, type[AbstractRewardManager]] = {}


@dataclass(frozen=True)
class OverlongBuffer:
    """DAPO's soft punishment of long responses.

    Args:
        max_response_length: L_max, the longest response in tokens.
        buffer_len: L_cache, over how many tokens before L_max the punishment grows.
        penalty_factor: The punishment at L_max.

    Raises:
        UserError: `buffer_len` outside 1 to `max_response_length`, or a negative factor.
    """

    max_response_length: int
    buffer_len: int
    penalty_factor: float = 1.0

    def __post_init__(self) -> None:
        """Refuse impossible numbers."""
        if not 1 <= self.buffer_len <= self.max_response_length:
            raise UserError.for_key(
                "reward_model.overlong_buffer.len",
                self.buffer_len,
                f"must be from 1 to data.max_response_length={self.max_response_length}",
                "Give a shorter buffer, or switch it off with reward_model.overlong_buffer.enable=False",
            )
        if not (self.penalty_factor >= 0 and math.isfinite(self.penalty_factor)):
            raise UserError.for_key(
                "reward_model.overlong_buffer.penalty_factor", self.penalty_factor, "must be 0 or more", "Change it"
            )

    def penalty(self, num_tokens: int) -> float:
        """Punish a length.

        Args:
            num_tokens: Length of the response in tokens, EOS included.

        Returns:
            0 up to L_max - L_cache, then falling linearly to -penalty_factor at L_max, which is also the least.

        Source: DAPO (arXiv 2503.14476), Eq. 13, times `penalty_factor`.
        """
        excess = num_tokens - (self.max_response_length - self.buffer_len)
        return -self.penalty_factor * min(excess / self.buffer_len, 1.0) if excess > 0 else 0.0


@dataclass(frozen=True)
class ManagerSettings:
    """What a reward manager needs.

    Args:
        rule_range: r_out of an incorrect and of a correct response.
        is_custom: Whether the verdicts come from the user's function, whose own number is then r_out.
        overlong: The soft punishment, None for none.

    Raises:
        UserError: `rule_range` does not rise.
    """

    rule_range: tuple[float, float] = (-1.0, 1.0)
    is_custom: bool = False
    overlong: OverlongBuffer | None = None

    def __post_init__(self) -> None:
        """Refuse a range that would reward mistakes."""
        if len(self.rule_range) != 2 or not -math.inf < self.rule_range[0] < self.rule_range[1] < math.inf:
            raise UserError.for_key(
                "reward_model.process_reward.rule_range",
                self.rule_range,
                "must be two finite numbers, incorrect below correct",
                "Write e.g. [-1,1] or [0,1]",
            )


@dataclass(frozen=True)
class RuleReward:
    """The outcome reward of one response.

    Args:
        rule_score: r_out; NaN where `is_missing`.
        overlong_penalty: 0 or negative, its own column.
        is_missing: The user's function gave no score; `reward_model.process_reward.on_error` decides.
    """

    rule_score: float
    overlong_penalty: float = 0.0
    is_missing: bool = False


class AbstractRewardManager(ABC):
    """Turns verdicts into outcome rewards.

    Attributes:
        judges_batch: All responses of a batch are judged in one call, when the last one is there.

    Example:
        >>> manager = get_reward_manager_cls("naive")(ManagerSettings(rule_range=(0.0, 1.0)))
        >>> manager.reward(reward_input, verdict).rule_score
        1.0
    """

    judges_batch: ClassVar[bool] = False

    def __init__(self, settings: ManagerSettings) -> None:
        """Keep the settings.

        Args:
            settings: What the configuration asks for.
        """
        self.settings = settings

    @property
    def reads_step_scores(self) -> bool:
        """Whether step scores that the user's function gives stand in for the PRM's."""
        return False

    @abstractmethod
    def reward(self, reward_input: RewardInput, verdict: RuleVerdict) -> RuleReward:
        """Give one response its outcome reward.

        Args:
            reward_input: The response.
            verdict: What the scorer said of it.

        Returns:
            Its reward.
        """

    def outcome(self, verdict: RuleVerdict) -> tuple[float, bool]:
        """Read r_out from a verdict.

        A shipped scorer is a pure function of the answer: an answer it cannot judge in time is not a right answer, so
        it gets the lower end of the range (and is counted by the pool). The user's function may fail for any reason:
        its missing score stays missing.

        Args:
            verdict: The verdict.

        Returns:
            r_out, NaN where missing; and whether it is missing.
        """
        low, high = self.settings.rule_range
        if not self.settings.is_custom:
            return (high if verdict.is_correct else low), False
        if verdict.status != "scored":
            return math.nan, True
        return verdict.score, False


def register(name: str) -> Callable[[type[AbstractRewardManager]], type[AbstractRewardManager]]:
    """Make a manager known under a name.

    Args:
        name: Value of `reward_model.reward_manager`.

    Returns:
        A class decorator.

    Raises:
        ValueError: Another class has this name.
    """

    def keep(manager: type[AbstractRewardManager]) -> type[AbstractRewardManager]:
        known = _MANAGERS.setdefault(name, manager)
        if known is not manager:
            raise ValueError(f"reward manager {name!r} is registered already, as {known.__qualname__}")
        return manager

    return keep


def get_reward_manager_cls(name: str) -> type[AbstractRewardManager]:
    """Find a manager.

    Args:
        name: Value of `reward_model.reward_manager`.

    Returns:
        Its class.

    Raises:
        UserError: Nobody registered the name.
    """
    if name not in _MANAGERS and name in _SHIPPED:
        importlib.import_module(_SHIPPED[name])
    if name not in _MANAGERS:
        known = ", ".join(sorted({*_SHIPPED, *_MANAGERS}))
        raise UserError.for_key("reward_model.reward_manager", name, f"known are {known}", "Choose one of them")
    return _MANAGERS[name]
