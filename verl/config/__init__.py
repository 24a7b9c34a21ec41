# SPDX-License-Identifier: Apache-2.0
"""Typed, frozen configuration of every entry point. Imports neither torch nor Ray nor any model library.

`verl.config.hydra` (not imported here) is the door: it turns a command line into one of the three roots.
"""

from __future__ import annotations

from verl.config.actor import ActorConfig, RefConfig
from verl.config.algorithm import AlgorithmConfig, KLCtrlConfig
from verl.config.batch_plan import BatchPlan, MicroBatchLimit, SupervisedBatchPlan
from verl.config.data import DataConfig
from verl.config.engine import FSDPConfig, MegatronConfig, MixedPrecisionConfig, OptimConfig
from verl.config.evaluation import EvaluationConfig
from verl.config.generation import GenerationConfig
from verl.config.model import ModelConfig
from verl.config.reward import (
    CustomRewardFunctionConfig,
    OverlongBufferConfig,
    ProcessRewardConfig,
    RewardModelConfig,
    RewardModelModelConfig,
)
from verl.config.rollout import RolloutConfig, ValKwargs
from verl.config.root import ActorRolloutRefConfig, PPOTrainerConfig
from verl.config.sft import PRMDataConfig, PRMTrainerConfig, SFTDataConfig, SFTTrainerConfig, SupervisedTrainerConfig
from verl.config.trainer import RayKwargsConfig, TrainerConfig

__all__ = [
    "ActorConfig",
    "ActorRolloutRefConfig",
    "AlgorithmConfig",
    "BatchPlan",
    "CustomRewardFunctionConfig",
    "DataConfig",
    "EvaluationConfig",
    "FSDPConfig",
    "GenerationConfig",
    "KLCtrlConfig",
    "MegatronConfig",
    "MicroBatchLimit",
    "MixedPrecisionConfig",
    "ModelConfig",
    "OptimConfig",
    "OverlongBufferConfig",
    "PPOTrainerConfig",
    "PRMDataConfig",
    "PRMTrainerConfig",
    "ProcessRewardConfig",
    "RayKwargsConfig",
    "RefConfig",
    "RewardModelConfig",
    "RewardModelModelConfig",
    "RolloutConfig",
    "SFTDataConfig",
    "SFTTrainerConfig",
    "SupervisedBatchPlan",
    "SupervisedTrainerConfig",
    "TrainerConfig",
    "ValKwargs",
]
