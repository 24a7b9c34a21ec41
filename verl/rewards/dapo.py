# SPDX-License-Identifier: Apache-2.0
"""DAPO's reward manager (arXiv 2503.14476): the outcome, and the soft overlong punishment as its own value."""

from __future__ import annotations

from verl.rewards.manager import AbstractRewardManager, RuleReward, register
from verl.rewards.types import RewardInput, RuleVerdict


@register("dapo")
class DAPORewardManager(AbstractRewardManager):
    """Outcome and length punishment.

    Example:
        >>> settings = ManagerSettings(overlong=OverlongBuffer(max_response_length=100, buffer_len=20))
        >>> DAPORewardManager(settings).reward(response_of_90_tokens, verdict).overlong_penalty
        -0.5
    """

    def reward(self, reward_input: RewardInput, verdict: RuleVerdict) -> RuleReward:
        """Give one response its outcome and its length punishment.

        Args:
            reward_input: The response.
            verdict: What the scorer said of it.

        Returns:
            Its reward; no penalty where no buffer is set.
        """
        rule_score, is_missing = self.outcome(verdict)
        overlong = self.settings.overlong
        penalty = 0.0 if overlong is None else overlong.penalty(reward_input.num_tokens)
        return RuleReward(rule_score, penalty, is_missing)
