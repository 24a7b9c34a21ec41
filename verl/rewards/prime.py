# SPDX-License-Identifier: Apache-2.0
"""The reward manager after PRIME's: an answer that cannot be judged, in time or at all, is a wrong answer.

Source of the rule: PRIME (arXiv 2502.01456), whose graders run in parallel processes with a time limit. Here every
manager's do; what is left is the meaning of a failure.
"""

from __future__ import annotations

from typing import ClassVar

from verl.rewards.manager import register
from verl.rewards.naive import NaiveRewardManager
from verl.rewards.types import RuleVerdict


@register("prime")
class PrimeRewardManager(NaiveRewardManager):
    """Outcome only; a verdict that timed out or failed is the low end of `rule_range` (and counted).

    Example:
        >>> late = RuleVerdict(0.0, False, status="timeout")
        >>> PrimeRewardManager(ManagerSettings(is_custom=True)).reward(reward_input, late).rule_score
        -1.0
    """

    name: ClassVar[str] = "prime"

    def outcome(self, verdict: RuleVerdict) -> tuple[float, bool]:
        """Read r_out from a verdict.

        Args:
            verdict: The verdict.

        Returns:
            r_out; it is never missing.
        """
        if verdict.status != "scored":
            return self.settings.rule_range[0], False
        return super().outcome(verdict)
