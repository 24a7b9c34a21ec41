# SPDX-License-Identifier: Apache-2.0
"""The root of a GRPO run's configuration. Cross-section checks are in `checks`, derived numbers in `batch_plan`."""

from __future__ import annotations

from dataclasses import dataclass, field

from verl.config.actor import ActorConfig, RefConfig
from verl.config.algorithm import AlgorithmConfig
from verl.config.data import DataConfig
from verl.config.model import ModelConfig
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
