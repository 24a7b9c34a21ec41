# SPDX-License-Identifier: Apache-2.0
"""The reward manager for functions that judge a whole batch at once (a judge model asked once, scores by rank)."""

from __future__ import annotations

from typing import ClassVar

from verl.rewards.manager import ManagerSettings, register
from verl.rewards.naive import NaiveRewardManager
from verl.utils.errors import UserError


@register("batch")
class BatchRewardManager(NaiveRewardManager):
    """Outcome only, from one call `compute_score(data_sources, solution_strs, ground_truths, extra_infos)`.

    The lists hold the responses group by group; the call is made in a worker process, when the last response is there.

    Example:
        >>> BatchRewardManager(ManagerSettings(is_custom=True)).reward(reward_input, RuleVerdict(0.5, True)).rule_score
        0.5
    """

    name: ClassVar[str] = "batch"
    judges_batch: ClassVar[bool] = True

    def __init__(self, settings: ManagerSettings) -> None:
        """Keep the settings.

        Args:
            settings: What the configuration asks for.

        Raises:
            UserError: There is no function of the user, or a length punishment is asked for.
        """
        super().__init__(settings)
        if not settings.is_custom:
            raise UserError.for_key(
                "reward_model.reward_manager",
                self.name,
                "calls your own function, but custom_reward_function.path is not set",
                "Set it, or reward_model.reward_manager=naive",
            )
