# SPDX-License-Identifier: Apache-2.0
"""The root of a GRPO run's configuration. Checks across sections are in `checks`, derived numbers in `batch_plan`."""

from __future__ import annotations

from dataclasses import dataclass, field

from verl.config.actor import ActorConfig, RefConfig
from verl.config.algorithm import AlgorithmConfig
from verl.config.checks import find_problems
from verl.config.data import DataConfig
from verl.config.model import ModelConfig
from verl.config.notices import find_notices
from verl.config.problems import Problem, raise_all
from verl.config.reward import CustomRewardFunctionConfig, RewardModelConfig
from verl.config.rollout import RolloutConfig
from verl.config.trainer import RayKwargsConfig, TrainerConfig


@dataclass(frozen=True, kw_only=True)
class ActorRolloutRefConfig:
    """The policy: how it is trained, how it answers, and its reference."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """Weights and tokenizer."""
    actor: ActorConfig = field(default_factory=ActorConfig)
    """The policy update."""
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    """Answering prompts."""
    ref: RefConfig = field(default_factory=RefConfig)
    """Reference log-probs."""


@dataclass(frozen=True, kw_only=True)
class PPOTrainerConfig:
    """Root of `verl.trainer.main_ppo`: verl's key tree, typed and frozen."""

    data: DataConfig = field(default_factory=DataConfig)
    """Prompts."""
    actor_rollout_ref: ActorRolloutRefConfig = field(default_factory=ActorRolloutRefConfig)
    """The policy."""
    reward_model: RewardModelConfig = field(default_factory=RewardModelConfig)
    """Scoring."""
    custom_reward_function: CustomRewardFunctionConfig = field(default_factory=CustomRewardFunctionConfig)
    """A rule function of the user."""
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    """Advantages."""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    """The run."""
    ray_kwargs: RayKwargsConfig = field(default_factory=RayKwargsConfig)
    """Ray."""

    @property
    def needs_reference(self) -> bool:
        """Whether a reference model is loaded at all (a KL term is on)."""
        return self.actor_rollout_ref.actor.use_kl_loss or self.algorithm.use_kl_in_reward

    @property
    def has_step_scores(self) -> bool:
        """Whether responses get step scores: from a PRM, or from the user's function by the manager `process`."""
        own = self.reward_model.reward_manager == "process" and self.custom_reward_function.path is not None
        return self.reward_model.enable or own

    def problems(self) -> list[Problem]:
        """List every mistake across sections (types and single values were checked at the door)."""
        return find_problems(self)

    def notices(self) -> list[str]:
        """List values that are read differently from how they look, or not at all."""
        return find_notices(self)

    def check(self) -> None:
        """Refuse a configuration with mistakes across sections.

        Raises:
            UserError: one message with all of them.
        """
        raise_all(self.problems())
