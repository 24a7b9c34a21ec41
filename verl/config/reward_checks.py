# SPDX-License-Identifier: Apache-2.0
"""Checks of rewards and advantages across sections. Opens no file and loads no model."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

from verl.config.alarms import alarm_problems
from verl.config.names import ADV_ESTIMATORS, GROUP_ESTIMATORS, PROCESS_ESTIMATORS
from verl.config.problems import Problem, describe_choices

if TYPE_CHECKING:
    from verl.config.root import PPOTrainerConfig

_PROCESS = "reward_model.process_reward"
_ESTIMATOR = "algorithm.adv_estimator"
_FILTER = "algorithm.group_filter"
_PRM_ON = "reward_model.enable"
_LARGEST_SHARE = 0.95
"""Share of a GPU's memory that all servers on it may take together."""


def reward_problems(config: PPOTrainerConfig) -> Iterator[Problem]:
    """Check scoring, blending and estimation.

    Args:
        config: The root, every value of the right type.

    Yields:
        Every mistake found.
    """
    yield from _estimator(config)
    yield from _process_estimator(config)
    yield from _group_filter(config)
    yield from _blend(config)
    if config.reward_model.enable:
        yield from _prm_devices(config)
    yield from _pool_without_prm(config)
    yield from _manager(config)
    yield from _overlong(config)
    yield from alarm_problems(config.reward_model.alarms)


def _estimator(config: PPOTrainerConfig) -> Iterator[Problem]:
    name = config.algorithm.adv_estimator
    # a user's own estimator is registered by external_lib, which is imported (and the name looked up) before Ray starts
    if name not in ADV_ESTIMATORS and not config.actor_rollout_ref.model.external_lib:
        allowed, mend = describe_choices(name, ADV_ESTIMATORS)
        if name == "gae":
            mend = "There is no critic: use 'grpo'"
        yield Problem(_ESTIMATOR, name, allowed, mend)
    if name in GROUP_ESTIMATORS and config.actor_rollout_ref.rollout.n < 2:
        allowed = f"{name} compares the responses of one prompt; with one response every advantage is 0"
        mend = "Set actor_rollout_ref.rollout.n to 2 or more"
        yield Problem("actor_rollout_ref.rollout.n", config.actor_rollout_ref.rollout.n, allowed, mend, (_ESTIMATOR,))


def _process_estimator(config: PPOTrainerConfig) -> Iterator[Problem]:
    name, mode = config.algorithm.adv_estimator, config.reward_model.process_reward.mode
    gate = config.reward_model.process_reward.gate
    if name not in PROCESS_ESTIMATORS:
        return
    if not config.has_step_scores:
        mend = "Set reward_model.enable=True and reward_model.model.path, or adv_estimator=grpo"
        yield Problem(_ESTIMATOR, name, "reads step scores, but no PRM is on", mend, (_PRM_ON,))
    if mode != "step":
        allowed = f"{name} reads the scores of single steps, which only mode step gives"
        mend = "Set mode=step, or algorithm.adv_estimator=grpo"
        yield Problem(f"{_PROCESS}.mode", mode, allowed, mend, (_ESTIMATOR,))
    if gate != "none":
        allowed = f"{name} reads raw step scores, so a gate would have no effect"
        mend = "Set gate=none, or adv_estimator=grpo (papo credits the process of correct answers only)"
        yield Problem(f"{_PROCESS}.gate", gate, allowed, mend, (_ESTIMATOR,))
    if config.algorithm.use_kl_in_reward:
        allowed = f"{name} reads scores, not token rewards, so the penalty would be lost"
        mend = "Set use_kl_in_reward=False (and actor.use_kl_loss=True), or adv_estimator=grpo"
        yield Problem("algorithm.use_kl_in_reward", True, allowed, mend, (_ESTIMATOR,))
    if name == "grpo_delta" and not (config.algorithm.grpo_delta.clip or config.algorithm.grpo_delta.delta):
        allowed = "without clip and delta the plain sum of scores is left, which pays for more steps"
        mend = "Set one of the two to True, or algorithm.adv_estimator=grpo_ps"
        yield Problem("algorithm.grpo_delta.clip", False, allowed, mend, ("algorithm.grpo_delta.delta", _ESTIMATOR))


def _group_filter(config: PPOTrainerConfig) -> Iterator[Problem]:
    chosen, size = config.algorithm.group_filter, config.actor_rollout_ref.rollout.n
    if chosen.name == "none":
        return
    if not config.reward_model.enable:
        mend = "Set reward_model.enable=True and reward_model.model.path, or group_filter.name=none"
        yield Problem(f"{_FILTER}.name", chosen.name, "reads step scores, but no PRM is on", mend, (_PRM_ON,))
    keep = chosen.keep or (size + 1) // 2
    if not 2 <= keep < size:
        allowed = f"{keep} kept of {size} responses per prompt: at least 2 must stay and 1 must go"
        mend = "Raise actor_rollout_ref.rollout.n, or lower keep (0 = half)"
        yield Problem(f"{_FILTER}.keep", chosen.keep, allowed, mend, ("actor_rollout_ref.rollout.n",))


def _blend(config: PPOTrainerConfig) -> Iterator[Problem]:
    process = config.reward_model.process_reward
    if process.aggregation == "prod" and process.score_space != "prob":
        allowed = "prod multiplies probabilities"
        mend = "Set score_space=prob, or another aggregation (mean | min | last)"
        yield Problem(f"{_PROCESS}.aggregation", "prod", allowed, mend, (f"{_PROCESS}.score_space",))
    if process.rule_range[0] >= process.rule_range[1]:
        allowed = "a wrong answer must get less than a right one: [wrong, right]"
        yield Problem(f"{_PROCESS}.rule_range", list(process.rule_range), allowed, "Write e.g. [-1.0,1.0]")
    if 0 < process.max_step_chars <= process.min_step_chars:
        allowed = f"must be larger than min_step_chars={process.min_step_chars}"
        yield Problem(f"{_PROCESS}.max_step_chars", process.max_step_chars, allowed, "Raise it, or set it to 0 (off)")
    if not process.step_separator:
        mend = "Write the text between two steps, e.g. '\"\\n\\n\"'"
        yield Problem(f"{_PROCESS}.step_separator", "", "must not be empty", mend)
    points = process.beta_schedule
    rising = all(left[0] < right[0] for left, right in pairwise(points))
    if not rising or any(step < 0 or not 0.0 <= beta <= 1.0 for step, beta in points):
        allowed = "needs training steps that rise from 0 on, and beta between 0 and 1"
        mend = "Write e.g. [[0,0.75],[200,0.25]]"
        yield Problem(f"{_PROCESS}.beta_schedule", [list(point) for point in points], allowed, mend)


def _prm_devices(config: PPOTrainerConfig) -> Iterator[Problem]:
    prm = config.reward_model
    if not prm.model.path:
        yield Problem("reward_model.model.path", "", "is required", "Name a local folder or a hub id org/name")
    if prm.enable_resource_pool and prm.n_gpus_per_node < 1:
        mend = "Set it to the PRM's devices per node, e.g. 2 (and trainer.n_gpus_per_node to the rest)"
        yield Problem("reward_model.n_gpus_per_node", prm.n_gpus_per_node, "the PRM's pool needs devices", mend)
        return
    pool_key = "reward_model.n_gpus_per_node" if prm.enable_resource_pool else "trainer.n_gpus_per_node"
    per_node = prm.n_gpus_per_node if prm.enable_resource_pool else config.trainer.n_gpus_per_node
    tp = prm.tensor_model_parallel_size
    if prm.process_reward.backend == "hf" and tp > 1:
        mend = f"Set it to 1, or {_PROCESS}.backend=vllm"
        keys = (f"{_PROCESS}.backend",)
        yield Problem(
            "reward_model.tensor_model_parallel_size", tp, "backend hf has one device per replica", mend, keys
        )
    elif per_node % tp:
        fault = "is larger than" if tp > per_node else "must divide"
        allowed = f"{fault} {pool_key}={per_node} (a replica lies within one node)"
        mend = f"Set it to a divisor of {per_node}"
        yield Problem("reward_model.tensor_model_parallel_size", tp, allowed, mend, (pool_key,))
    shares = config.actor_rollout_ref.rollout.gpu_memory_utilization + prm.gpu_memory_utilization
    is_split = prm.enable_resource_pool or config.actor_rollout_ref.rollout.enable_resource_pool
    shares_gpus = not is_split and config.trainer.device != "cpu"
    both_served = prm.process_reward.backend == "vllm" and config.actor_rollout_ref.rollout.name == "vllm"
    if shares_gpus and both_served and shares > _LARGEST_SHARE:
        allowed = f"shares its GPUs with the rollout servers; both together take {shares:.2f} of the memory"
        mend = f"Keep the sum with rollout.gpu_memory_utilization at or below {_LARGEST_SHARE}, or give the PRM a pool"
        key = "reward_model.gpu_memory_utilization"
        others = ("actor_rollout_ref.rollout.gpu_memory_utilization", "reward_model.enable_resource_pool")
        yield Problem(key, prm.gpu_memory_utilization, allowed, mend, others)


def _pool_without_prm(config: PPOTrainerConfig) -> Iterator[Problem]:
    if config.reward_model.enable_resource_pool and not config.reward_model.enable:
        mend = "Set reward_model.enable=True, or enable_resource_pool=False"
        yield Problem("reward_model.enable_resource_pool", True, "reserves devices, but no PRM is on", mend)


def _manager(config: PPOTrainerConfig) -> Iterator[Problem]:
    name, has_function = config.reward_model.reward_manager, config.custom_reward_function.path is not None
    key, function = "reward_model.reward_manager", "custom_reward_function.path"
    if name == "batch" and not has_function:
        allowed = f"calls your own function with the whole batch, but {function} is not set"
        yield Problem(key, name, allowed, f"Set {function}, or reward_manager=naive", (function,))
    if name == "process" and not config.has_step_scores:
        allowed = "needs step scores, but there is neither a PRM nor a function of your own that could give them"
        mend = f"Set reward_model.enable=True and reward_model.model.path, or {function}"
        yield Problem(key, name, allowed, mend, ("reward_model.enable", function))


def _overlong(config: PPOTrainerConfig) -> Iterator[Problem]:
    buffer, limit = config.reward_model.overlong_buffer, config.data.max_response_length
    if not buffer.enable:
        return
    if config.reward_model.reward_manager != "dapo":
        key = "reward_model.reward_manager"
        allowed = "has no overlong penalty, but reward_model.overlong_buffer.enable=True"
        mend = "Set reward_manager=dapo"
        yield Problem(key, config.reward_model.reward_manager, allowed, mend, ("reward_model.overlong_buffer.enable",))
    if buffer.len > limit:
        allowed = f"must not exceed data.max_response_length={limit}"
        mend = f"Set it to {limit} or less"
        yield Problem("reward_model.overlong_buffer.len", buffer.len, allowed, mend, ("data.max_response_length",))
