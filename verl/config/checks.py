# SPDX-License-Identifier: Apache-2.0
"""Checks of a GRPO run across sections: sizes, devices, sampling, the run itself. Rewards are in `reward_checks`.

Types and single values are checked at the door; files are looked for in `files`. Knows no device.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from verl.config.batch_plan import MicroBatchLimit, actor_limit, data_parallel_ranks, log_prob_limit
from verl.config.fsdp_checks import fsdp_problems
from verl.config.megatron_checks import megatron_problems
from verl.config.problems import Problem
from verl.config.reward_checks import reward_problems
from verl.config.rollout_checks import rollout_problems
from verl.config.serving_checks import ServingNeeds, find_serving_problems
from verl.config.sglang_checks import sglang_training_problems
from verl.config.weight_sync_checks import weight_sync_problems

if TYPE_CHECKING:
    from verl.config.root import PPOTrainerConfig

_ACTOR = "actor_rollout_ref.actor"
_REF = "actor_rollout_ref.ref"
_ROLLOUT = "actor_rollout_ref.rollout"
_CORRECTION = "algorithm.rollout_correction"


def find_problems(config: PPOTrainerConfig) -> list[Problem]:
    """Check a GRPO run across sections.

    Args:
        config: The root, every value of the right type.

    Returns:
        Every mistake found, in the order of the sections.
    """
    groups = (
        _required(config),
        _batch_sizes(config),
        _parallel_sizes(config),
        fsdp_problems(config),
        megatron_problems(config),
        _micro_batches(config),
        _rollout_servers(config),
        rollout_problems(config),
        weight_sync_problems(config),
        _sampling(config),
        _correction(config),
        _run(config),
        reward_problems(config),
    )
    return [problem for group in groups for problem in group]


def _required(config: PPOTrainerConfig) -> Iterator[Problem]:
    validates = config.trainer.val_before_train or config.trainer.val_only or config.trainer.test_freq > 0
    if not config.data.train_files:
        yield Problem("data.train_files", "", "is required", "Name one or more parquet or JSONL files")
    if not config.data.val_files and validates:
        mend = "Name a file, or set trainer.val_before_train=False and trainer.test_freq=-1"
        yield Problem("data.val_files", "", "is required for validation", mend)
    if not config.actor_rollout_ref.model.path:
        yield Problem("actor_rollout_ref.model.path", "", "is required", "Name a local folder or a hub id org/name")


def _batch_sizes(config: PPOTrainerConfig) -> Iterator[Problem]:
    prompts, mini = config.data.train_batch_size, config.actor_rollout_ref.actor.ppo_mini_batch_size
    mini_key, batch_key = f"{_ACTOR}.ppo_mini_batch_size", "data.train_batch_size"
    responses = config.actor_rollout_ref.rollout.n
    ranks = data_parallel_ranks(config.actor_rollout_ref.actor, config.trainer.num_devices)
    if mini > prompts:
        allowed = f"must not exceed {batch_key}={prompts} (both count prompts)"
        yield Problem(mini_key, mini, allowed, f"Set {mini_key}={prompts} for one optimizer step", (batch_key,))
        return
    if prompts % mini:
        allowed = f"must divide {batch_key}={prompts}, so that all mini-batches are equal"
        yield Problem(mini_key, mini, allowed, f"Set it to a divisor of {prompts}", (batch_key,))
        return
    if ranks < 1:
        return  # said by _parallel_sizes
    sizes = ((batch_key, prompts), (mini_key, mini))
    for key, size in sizes[: 1 if mini == prompts else 2]:
        if size * responses % ranks:
            product = f"{size} prompts x rollout.n={responses} = {size * responses} sequences"
            allowed = f"{product} must be a multiple of the {ranks} data-parallel ranks"
            near = _next_multiple(size, responses, ranks)
            mend = f"Use e.g. {near} prompts, or change rollout.n or trainer.n_gpus_per_node"
            yield Problem(key, size, allowed, mend, (f"{_ROLLOUT}.n", "trainer.n_gpus_per_node", "trainer.nnodes"))


def _next_multiple(size: int, responses: int, ranks: int) -> int:
    while size * responses % ranks:
        size += 1
    return size


def _parallel_sizes(config: PPOTrainerConfig) -> Iterator[Problem]:
    actor, ref, ranks = config.actor_rollout_ref.actor, config.actor_rollout_ref.ref, config.trainer.num_devices
    devices = ("trainer.n_gpus_per_node", "trainer.nnodes")
    parallel = (
        (f"{_ACTOR}.fsdp_config.fsdp_size", actor.fsdp_config.fsdp_size),
        (f"{_REF}.fsdp_config.fsdp_size", ref.fsdp_config.fsdp_size),
    )
    for key, size in parallel:
        if size > 0 and ranks % size:
            allowed = f"must divide the {ranks} policy ranks (trainer.nnodes x n_gpus_per_node)"
            yield Problem(key, size, allowed, f"Set it to a divisor of {ranks}", devices)
    for key, sharding in ((_ACTOR, actor.fsdp_config), (_REF, ref.fsdp_config)):
        if sharding.offload_policy and (sharding.param_offload or sharding.optimizer_offload):
            allowed = "already keeps weights and optimizer states in CPU memory"
            mend = "Switch off param_offload and optimizer_offload, or offload_policy"
            yield Problem(f"{key}.fsdp_config.offload_policy", True, allowed, mend)


def _micro_batches(config: PPOTrainerConfig) -> Iterator[Problem]:
    actor = config.actor_rollout_ref.actor
    longest = config.data.max_prompt_length + config.data.max_response_length
    update = actor_limit(config)
    update_keys = ("ppo_micro_batch_size_per_gpu", "ppo_max_token_len_per_gpu", "use_dynamic_bsz")
    yield from _micro_batch(_ACTOR, update_keys, update, longest)
    names = ("log_prob_micro_batch_size_per_gpu", "log_prob_max_token_len_per_gpu", "log_prob_use_dynamic_bsz")
    sections = [(_ROLLOUT, False), (_REF, True)] if config.needs_reference else [(_ROLLOUT, False)]
    for section, reference in sections:
        limit = log_prob_limit(config, reference=reference)
        own = config.actor_rollout_ref.ref if reference else config.actor_rollout_ref.rollout
        inherits = own.log_prob_max_token_len_per_gpu is None and own.log_prob_use_dynamic_bsz is None
        if limit != update and not inherits:
            yield from _micro_batch(section, names, limit, longest)
    if actor.ppo_micro_batch_size_per_gpu is None:
        return
    ranks = data_parallel_ranks(actor, config.trainer.num_devices)
    share = actor.ppo_mini_batch_size * config.actor_rollout_ref.rollout.n // max(1, ranks)
    if not actor.use_dynamic_bsz and 0 < share < actor.ppo_micro_batch_size_per_gpu:
        key = f"{_ACTOR}.ppo_micro_batch_size_per_gpu"
        allowed = f"must not exceed a rank's share of a mini-batch, {share} sequences"
        yield Problem(key, actor.ppo_micro_batch_size_per_gpu, allowed, f"Set {key}={share} or smaller")


def _micro_batch(section: str, names: tuple[str, str, str], limit: MicroBatchLimit, longest: int) -> Iterator[Problem]:
    sequences, budget, dynamic = (f"{section}.{name}" for name in names)
    if limit.max_tokens is None and limit.max_sequences is None:
        allowed = f"without a token budget {sequences} is required"
        yield Problem(dynamic, False, allowed, f"Set {dynamic}=True, or {sequences}=1 or more", (sequences,))
    if limit.max_tokens is not None and limit.max_tokens < longest:
        allowed = f"one full sequence has {longest} tokens (data.max_prompt_length + data.max_response_length)"
        mend = f"Set it to {longest} or more (per rank, divided by the sequence-parallel size), or leave it out"
        keys = ("data.max_prompt_length", "data.max_response_length")
        yield Problem(budget, limit.max_tokens, allowed, mend, keys)


def _rollout_servers(config: PPOTrainerConfig) -> Iterator[Problem]:
    longest = config.data.max_prompt_length + config.data.max_response_length
    _, per_node = config.rollout_pool
    if per_node < 1:
        return  # said by rollout_problems
    needs = ServingNeeds(_ROLLOUT, longest, per_node, config.rollout_pool_key)
    yield from find_serving_problems(config.actor_rollout_ref.rollout, needs)
    yield from sglang_training_problems(config.actor_rollout_ref.rollout, config.trainer, _ROLLOUT)


def _sampling(config: PPOTrainerConfig) -> Iterator[Problem]:
    rollout, validation = config.actor_rollout_ref.rollout, config.actor_rollout_ref.rollout.val_kwargs
    is_corrected = config.algorithm.rollout_correction.weighs_cut_samples
    cut = "would sample from a cut distribution, whose log-probs the trainer cannot compute"
    for name, found, off in (("top_p", rollout.top_p, 1.0), ("top_k", rollout.top_k, -1)):
        if found != off and not is_corrected:
            mend = f"Set {name}={off} (val_kwargs.{name} is free), or {_CORRECTION}.rollout_is=token"
            yield Problem(f"{_ROLLOUT}.{name}", found, cut, mend, (f"{_CORRECTION}.rollout_is",))
    greedy = not validation.do_sample or validation.temperature == 0.0
    if validation.n > 1 and greedy:
        allowed = "greedy decoding gives the same answer every time"
        mend = "Set val_kwargs.do_sample=True and val_kwargs.temperature above 0, or n=1"
        keys = (f"{_ROLLOUT}.val_kwargs.do_sample", f"{_ROLLOUT}.val_kwargs.temperature")
        yield Problem(f"{_ROLLOUT}.val_kwargs.n", validation.n, allowed, mend, keys)


def _correction(config: PPOTrainerConfig) -> Iterator[Problem]:
    correction = config.algorithm.rollout_correction
    if correction.mask_low is not None and correction.mask_low == correction.mask_high:
        mend = "Move mask_low below 1, or mask_high above"
        yield Problem(f"{_CORRECTION}.mask_low", correction.mask_low, "equals mask_high: no token would be left", mend)


def _run(config: PPOTrainerConfig) -> Iterator[Problem]:
    trainer = config.trainer
    if trainer.resume_mode == "resume_path" and not trainer.resume_from_path:
        mend = "Set trainer.resume_from_path=.../global_step_N"
        yield Problem("trainer.resume_mode", trainer.resume_mode, "needs trainer.resume_from_path", mend)
    if trainer.resume_from_path and trainer.resume_mode != "resume_path":
        allowed = f"is not read with trainer.resume_mode={trainer.resume_mode}"
        mend = "Set trainer.resume_mode=resume_path"
        yield Problem("trainer.resume_from_path", trainer.resume_from_path, allowed, mend)
    if len(set(trainer.logger)) < len(trainer.logger):
        yield Problem("trainer.logger", list(trainer.logger), "names a logger twice", "Name each logger once")
