# SPDX-License-Identifier: Apache-2.0
"""The root of a GRPO run's configuration. Checks across sections are in `checks`, derived numbers in `batch_plan`."""

from __future__ import annotations

from dataclasses import dataclass, field

from verl.config.actor import ActorConfig, RefConfig
from verl.config.algorithm import AlgorithmConfig
from verl.config.batch_plan import BatchPlan
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
    def rollout_pool(self) -> tuple[int, int]:
        """Nodes on which rollout servers stand, and devices of each: a pool of their own, or the policy's."""
        rollout, trainer = self.actor_rollout_ref.rollout, self.trainer
        if rollout.enable_resource_pool:
            return rollout.nnodes, rollout.n_gpus_per_node
        return trainer.nnodes, trainer.n_gpus_per_node

    @property
    def rollout_pool_key(self) -> str:
        """Key of the devices per node of that pool."""
        is_own = self.actor_rollout_ref.rollout.enable_resource_pool
        return "actor_rollout_ref.rollout.n_gpus_per_node" if is_own else "trainer.n_gpus_per_node"

    @property
    def needs_old_log_probs(self) -> bool:
        """Whether the old log-probs take a forward pass: not where an update has one optimizer step and nothing reads
        them before it, for then the log-probs of that step's own forward pass are the old ones."""
        algorithm = self.algorithm
        has_further_steps = BatchPlan.from_config(self).optimizer_steps_per_training_step > 1
        reads_before = algorithm.use_kl_in_reward or algorithm.rollout_correction.is_on
        return self.actor_rollout_ref.actor.recompute_old_log_probs or has_further_steps or reads_before

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
