# SPDX-License-Identifier: Apache-2.0
"""From the reward section of the configuration to a reward loop: verifier, manager, PRM replicas, their checks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from verl.config import PPOTrainerConfig
from verl.rewards.loader import FunctionSpec, resolve_function
from verl.rewards.loop import LoopSettings, RewardLoop, Verifier
from verl.rewards.manager import ManagerSettings, OverlongBuffer, get_reward_manager_cls
from verl.rewards.prm.cache import ScoreCache
from verl.rewards.prm.checks import check_prm
from verl.rewards.prm.dispatch import DispatchSettings, spread_over
from verl.rewards.prm.selftest import self_test
from verl.rewards.prm.spec import PRMSpec
from verl.rewards.prm.steps import SplitRule
from verl.rewards.prm.types import ScoreSteps
from verl.trainer.ppo.placement import scorers_sleep
from verl.workers.prm_pool import RemoteScorer, is_replica_gone

logger = logging.getLogger(__name__)


def prm_spec(config: PPOTrainerConfig, device: str) -> PRMSpec:
    """How to run the PRM.

    Args:
        config: The run's configuration.
        device: `cuda` or `cpu`.

    Returns:
        The spec.
    """
    reward, process = config.reward_model, config.reward_model.process_reward
    return PRMSpec(
        path=reward.model.path,
        adapter=process.adapter,
        mode=process.mode,
        separator=process.step_separator,
        overlong=process.overlong,
        max_length=reward.max_length,
        # a PRM's tokenizer may need more tokens for the same text, and every reasoning step adds its step token
        longest_input=2 * (config.data.max_prompt_length + config.data.max_response_length),
        dtype=reward.dtype,
        device=device,
        tensor_parallel_size=reward.tensor_model_parallel_size,
        gpu_memory_utilization=reward.gpu_memory_utilization,
        kv_cache_bytes=int(reward.cpu_kvcache_gib * (1 << 30)) if device == "cpu" else None,
        max_num_batched_tokens=reward.max_num_batched_tokens,
        max_num_seqs=reward.max_num_seqs,
        enforce_eager=reward.enforce_eager,
        enable_sleep_mode=scorers_sleep(config, device),
        engine_kwargs=dict(reward.engine_kwargs),
        reference_path=process.implicit.reference_path,
        implicit_beta=process.implicit.beta,
    )


def custom_function(config: PPOTrainerConfig) -> FunctionSpec | None:
    """Find and check the user's reward function.

    Args:
        config: The run's configuration.

    Returns:
        Where it is and how its manager calls it; None where the shipped scorers judge.

    Raises:
        UserError: It cannot be loaded, or cannot take what it will be given.
    """
    custom = config.custom_reward_function
    manager = get_reward_manager_cls(config.reward_model.reward_manager)
    return resolve_function(custom.path, custom.name, custom.reward_kwargs, manager.judges_batch)


async def build_reward_loop(config: PPOTrainerConfig, verifier: Verifier, prm_servers: Sequence[Any]) -> RewardLoop:
    """Wire the scorers.

    Args:
        config: The run's configuration.
        verifier: Rule verifier.
        prm_servers: Started PRM servers, empty without a PRM.

    Returns:
        The loop.

    Raises:
        PRMSelfTestError: The loaded PRM does not prefer right reasoning steps to wrong ones.
    """
    reward, process = config.reward_model, config.reward_model.process_reward
    manager = get_reward_manager_cls(reward.reward_manager)(
        ManagerSettings(
            rule_range=process.rule_range,
            is_custom=config.custom_reward_function.path is not None,
            overlong=_overlong_buffer(config),
        )
    )
    settings = LoopSettings(
        split=SplitRule(process.step_separator, process.min_step_chars, process.max_step_chars),
        mode=process.mode,
        score_space=process.score_space,
        on_error=process.on_error,
    )
    score_steps, counts = _score_steps(config, prm_servers)
    if score_steps is not None:
        joined_by = process.step_separator if process.mode == "legacy" else None
        margin = await self_test(score_steps, reward.model.path, joined_by)
        logger.info("PRM self-test: right solutions score %.3f above wrong ones", margin)
    return RewardLoop(verifier, manager, score_steps, settings, counts)


def _overlong_buffer(config: PPOTrainerConfig) -> OverlongBuffer | None:
    buffer = config.reward_model.overlong_buffer
    if not buffer.enable:
        return None
    return OverlongBuffer(config.data.max_response_length, buffer.len, buffer.penalty_factor)


def _score_steps(
    config: PPOTrainerConfig, prm_servers: Sequence[Any]
) -> tuple[ScoreSteps | None, Callable[[], dict[str, int]]]:
    """The PRM's replicas as one, behind a cache where one is wanted; and what reads their totals."""
    if not prm_servers:
        return None, dict
    settings = DispatchSettings(
        max_in_flight=config.reward_model.max_num_seqs,
        timeout_s=config.reward_model.timeout_s,
        max_attempts=config.reward_model.max_retries + 1,
        is_dead=is_replica_gone,
    )
    dispatcher = spread_over([RemoteScorer(server) for server in prm_servers], settings)
    entries = config.reward_model.score_cache_entries
    if not entries:
        return dispatcher, lambda: dispatcher.counts
    cache = ScoreCache(dispatcher, entries)  # the PRM's weights never change during a run
    return cache, lambda: dispatcher.counts | cache.counts


def check_reward_model(config: PPOTrainerConfig) -> None:
    """Look at the PRM's files before Ray starts; does nothing without a PRM.

    Args:
        config: The run's configuration.

    Raises:
        UserError: The folder or hub name holds no PRM that can be used.
    """
    if not config.reward_model.enable:
        return
    facts = check_prm(prm_spec(config, "cpu"), config.data.max_prompt_length, config.data.max_response_length)
    for notice in facts.notices:
        logger.warning("%s", notice)
