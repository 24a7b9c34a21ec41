# SPDX-License-Identifier: Apache-2.0
"""The plain reward manager: the outcome, and nothing for length."""

from __future__ import annotations

from typing import ClassVar

from verl.rewards.manager import AbstractRewardManager, ManagerSettings, RuleReward, register
from verl.rewards.types import RewardInput, RuleVerdict
from verl.utils.errors import UserError


@register("naive")
class NaiveRewardManager(AbstractRewardManager):
    """Outcome only.

    Example:
        >>> NaiveRewardManager(ManagerSettings()).reward(reward_input, RuleVerdict(1.0, True)).rule_score
        1.0
    """

    name: ClassVar[str] = "naive"

    def __init__(self, settings: ManagerSettings) -> None:
        """Keep the settings.

        Args:
            settings: What the configuration asks for.

        Raises:
            UserError: A length punishment is asked for, which this manager would not give.
        """
        super().__init__(settings)
        if settings.overlong is not None:
            raise UserError.for_key(
                "reward_model.reward_manager",
                self.name,
                "gives no length punishment, but reward_model.overlong_buffer is on",
                "Set reward_model.reward_manager=dapo or reward_model.overlong_buffer.enable=False",
            )

    def reward(self, reward_input: RewardInput, verdict: RuleVerdict) -> RuleReward:
        """Give one response its outcome.

        Args:
            reward_input: The response.
            verdict: What the scorer said of it.

        Returns:
            Its reward, without penalty.
        """
        rule_score, is_missing = self.outcome(verdict)
        return RuleReward(rule_score, is_missing=is_missing)
