# SPDX-License-Identifier: Apache-2.0
"""Every name that a configuration value may take, as types and as tuples. Knows no code behind the names."""

from __future__ import annotations

from typing import Literal, get_args

ADV_ESTIMATORS: tuple[str, ...] = (
    "grpo",
    "rloo",
    "opo",
    "remax",
    "reinforce_plus_plus",
    "reinforce_plus_plus_baseline",
    "grpo_ps",
    "grpo_minform",
    "grpo_delta",
    "papo",
    "gdpo",
)
"""Advantage estimators that ship with the package."""
PROCESS_ESTIMATORS: tuple[str, ...] = ("grpo_ps", "grpo_minform", "grpo_delta", "papo", "gdpo")
"""Estimators that read step scores themselves: they need a PRM in mode `step`, and refuse KL-in-reward and gates."""
GROUP_ESTIMATORS: tuple[str, ...] = ("grpo", "rloo", "opo", "reinforce_plus_plus_baseline", *PROCESS_ESTIMATORS)
"""Estimators whose baseline is the group: one response per prompt would give an advantage of zero."""

STD_ESTIMATORS: tuple[str, ...] = ("grpo", "grpo_ps", "grpo_delta", "papo", "gdpo")
"""Estimators that read `norm_adv_by_std_in_grpo`."""
GroupFilterName = Literal["none", "prof"]
GROUP_FILTERS: tuple[str, ...] = get_args(GroupFilterName)

LossAggMode = Literal["token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"]
LOSS_AGG_MODES: tuple[str, ...] = get_args(LossAggMode)
CorrectionLevel = Literal["token", "sequence"]
CORRECTION_LEVELS: tuple[str, ...] = get_args(CorrectionLevel)
KLType = Literal["kl", "k1", "abs", "mse", "k2", "low_var_kl", "k3"]
KL_TYPES: tuple[str, ...] = get_args(KLType)
KLControllerType = Literal["fixed", "adaptive"]
KL_CONTROLLERS: tuple[str, ...] = get_args(KLControllerType)

Strategy = Literal["fsdp2", "fsdp", "megatron"]
STRATEGIES: tuple[str, ...] = get_args(Strategy)
RecomputeGranularity = Literal["full", "selective"]
RECOMPUTE_GRANULARITIES: tuple[str, ...] = get_args(RecomputeGranularity)
RecomputeMethod = Literal["uniform", "block"]
RECOMPUTE_METHODS: tuple[str, ...] = get_args(RecomputeMethod)
RolloutName = Literal["vllm", "hf", "sglang"]
ROLLOUT_NAMES: tuple[str, ...] = get_args(RolloutName)
InFlightUpdate = Literal["wait", "keep"]
IN_FLIGHT_UPDATES: tuple[str, ...] = get_args(InFlightUpdate)
ROLLOUTS_THAT_KEEP: tuple[str, ...] = ("vllm", "sglang")
"""Engines that can freeze the responses they are in the middle of, take new weights and go on."""
DType = Literal["bfloat16", "float32", "float16"]
DTYPES: tuple[str, ...] = get_args(DType)
LRSchedule = Literal["constant", "cosine"]
LR_SCHEDULES: tuple[str, ...] = get_args(LRSchedule)
WeightSyncBackend = Literal["auto", "shared_memory", "ipc", "nccl", "gloo"]
WEIGHT_SYNC_BACKENDS: tuple[str, ...] = get_args(WeightSyncBackend)

Truncation = Literal["error", "left", "right", "middle"]
TRUNCATIONS: tuple[str, ...] = get_args(Truncation)

RewardManagerName = Literal["naive", "dapo", "batch", "prime", "process"]
REWARD_MANAGERS: tuple[str, ...] = get_args(RewardManagerName)
AlarmName = Literal[
    "repeated_steps",
    "empty",
    "one_step",
    "steps_growth",
    "auc",
    "right_minus_wrong",
    "saturation",
    "unscored",
    "no_answer",
]
ALARM_NAMES: tuple[str, ...] = get_args(AlarmName)
PRMAdapterName = Literal[
    "auto",
    "reasonflux_prm",
    "reasonflux_prm_1_5b",
    "qwen_math_prm",
    "skywork_prm",
    "math_shepherd",
    "rlhflow_prm",
    "pure_prm",
    "implicit_prm",
]
PRM_ADAPTERS: tuple[str, ...] = get_args(PRMAdapterName)
PRMBackend = Literal["vllm", "hf"]
PRM_BACKENDS: tuple[str, ...] = get_args(PRMBackend)
PRMMode = Literal["step", "scalar", "legacy"]
PRM_MODES: tuple[str, ...] = get_args(PRMMode)
ScoreSpace = Literal["prob", "signed", "logit_diff"]
SCORE_SPACES: tuple[str, ...] = get_args(ScoreSpace)
StepAggregation = Literal["mean", "min", "last", "prod"]
STEP_AGGREGATIONS: tuple[str, ...] = get_args(StepAggregation)
Gate = Literal["none", "correct_only", "outcome_sign"]
GATES: tuple[str, ...] = get_args(Gate)
OnScoringError = Literal["rule_only", "drop_group", "stop"]
ON_SCORING_ERRORS: tuple[str, ...] = get_args(OnScoringError)
OverlongForPRM = Literal["window", "extend", "error"]
OVERLONG_FOR_PRM: tuple[str, ...] = get_args(OverlongForPRM)

DeviceName = Literal["auto", "cuda", "cpu"]
DEVICES: tuple[str, ...] = get_args(DeviceName)
LoggerName = Literal["console", "jsonl", "tensorboard", "wandb"]
LOGGERS: tuple[str, ...] = get_args(LoggerName)
ResumeMode = Literal["auto", "disable", "resume_path"]
RESUME_MODES: tuple[str, ...] = get_args(ResumeMode)
