# SPDX-License-Identifier: Apache-2.0
"""All batch arithmetic of a run in one place: configured keys never change their unit, every derived number is here.

Knows no device, no data and no model: numbers only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from verl.config.actor import ActorConfig
from verl.config.text import format_table

if TYPE_CHECKING:  # the roots check themselves with this file
    from verl.config.root import PPOTrainerConfig
    from verl.config.sft import PRMTrainerConfig, SFTTrainerConfig

DEFAULT_TOKEN_BUDGET = 16384
"""Tokens of a micro-batch on one rank when the user names no budget (never less than one full sequence)."""


@dataclass(frozen=True)
class MicroBatchLimit:
    """When a micro-batch is full: whichever limit is reached first.

    Example:
        `MicroBatchLimit(max_sequences=None, max_tokens=16384)` packs as many sequences as fit 16384 tokens.
    """

    max_sequences: int | None
    """Most sequences; None = no such limit."""
    max_tokens: int | None
    """Most tokens over all its sequences (shared by the ranks of one sequence-parallel group); None = no such limit."""

    def describe(self) -> str:
        """Write the limit in words."""
        parts = []
        if self.max_sequences is not None:
            parts.append(f"{self.max_sequences} sequences")
        if self.max_tokens is not None:
            parts.append(f"{self.max_tokens} tokens")
        return " or ".join(parts) or "whole share of the rank"


def data_parallel_ranks(actor: ActorConfig, num_devices: int) -> int:
    """Count the shares into which a batch is cut.

    Args:
        actor: The actor's section (engine and model-parallel sizes).
        num_devices: Policy ranks in all.

    Returns:
        Ranks divided by the ranks that share one sequence (or one model); 0 if there are too few ranks.
    """
    if actor.engine_name == "megatron":
        megatron = actor.megatron
        shared = megatron.tensor_model_parallel_size * megatron.pipeline_model_parallel_size
        return num_devices // (shared * megatron.context_parallel_size)
    return num_devices // actor.ulysses_sequence_parallel_size


def actor_limit(config: PPOTrainerConfig) -> MicroBatchLimit:
    """Give the micro-batch limit of the policy update.

    Args:
        config: The root.

    Returns:
        Sequence limit and token budget in force.
    """
    actor = config.actor_rollout_ref.actor
    budget = actor.ppo_max_token_len_per_gpu
    return _limit(
        config,
        (actor.ppo_micro_batch_size_per_gpu, budget if actor.use_dynamic_bsz else None),
        actor.use_dynamic_bsz,
        actor.ulysses_sequence_parallel_size,
    )


def log_prob_limit(config: PPOTrainerConfig, *, reference: bool) -> MicroBatchLimit:
    """Give the micro-batch limit of a forward pass without gradient; null keys follow the actor's.

    Args:
        config: The root.
        reference: Reference log-probs (section `ref`), or old log-probs (section `rollout`).

    Returns:
        Sequence limit and token budget in force.
    """
    actor = config.actor_rollout_ref.actor
    own = config.actor_rollout_ref.ref if reference else config.actor_rollout_ref.rollout
    parallel = config.actor_rollout_ref.ref.ulysses_sequence_parallel_size if reference else None
    sequences = own.log_prob_micro_batch_size_per_gpu or actor.ppo_micro_batch_size_per_gpu
    dynamic = actor.use_dynamic_bsz if own.log_prob_use_dynamic_bsz is None else own.log_prob_use_dynamic_bsz
    budget = own.log_prob_max_token_len_per_gpu or actor.ppo_max_token_len_per_gpu
    return _limit(config, (sequences, budget), dynamic, parallel or actor.ulysses_sequence_parallel_size)


def _limit(
    config: PPOTrainerConfig, given: tuple[int | None, int | None], dynamic: bool, sequence_parallel: int
) -> MicroBatchLimit:
    sequences, budget = given
    if not dynamic:
        return MicroBatchLimit(sequences, None)
    longest = config.data.max_prompt_length + config.data.max_response_length
    if budget is None:
        return MicroBatchLimit(sequences, max(DEFAULT_TOKEN_BUDGET * sequence_parallel, longest))
    return MicroBatchLimit(sequences, budget * sequence_parallel)


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """One training step in numbers.

    Example:
        `print(BatchPlan.from_config(config).table())`
    """

    prompts_per_step: int
    """Prompts per training step (`data.train_batch_size`)."""
    responses_per_prompt: int
    """Size of a group (`rollout.n`)."""
    policy_ranks: int
    """Devices that hold the policy."""
    data_parallel_ranks: int
    """Shares into which a batch is cut (policy ranks / ranks that share one sequence or model)."""
    mini_batch_prompts: int
    """Prompts per optimizer step (`actor.ppo_mini_batch_size`)."""
    ppo_epochs: int
    """Passes over each batch."""
    max_sequence_len: int
    """Longest prompt plus longest response. Unit: tokens."""
    rollout_servers: int
    """Servers that answer prompts (devices of their pool / rollout TP)."""
    actor: MicroBatchLimit
    """Limit of a micro-batch in the update."""
    old_log_prob: MicroBatchLimit
    """Limit of a micro-batch for the old log-probs."""
    ref: MicroBatchLimit
    """Limit of a micro-batch for the reference log-probs."""

    @classmethod
    def from_config(cls, config: PPOTrainerConfig) -> BatchPlan:
        """Do the arithmetic of a checked configuration.

        Args:
            config: A root without problems.

        Returns:
            The plan.
        """
        policy, ranks = config.actor_rollout_ref, config.trainer.num_devices
        nodes, per_node = config.rollout_pool
        return cls(
            prompts_per_step=config.data.train_batch_size,
            responses_per_prompt=policy.rollout.n,
            policy_ranks=ranks,
            data_parallel_ranks=data_parallel_ranks(policy.actor, ranks),
            mini_batch_prompts=policy.actor.ppo_mini_batch_size,
            ppo_epochs=policy.actor.ppo_epochs,
            max_sequence_len=config.data.max_prompt_length + config.data.max_response_length,
            rollout_servers=policy.rollout.num_servers(nodes * per_node),
            actor=actor_limit(config),
            old_log_prob=log_prob_limit(config, reference=False),
            ref=log_prob_limit(config, reference=True),
        )

    @property
    def sequences_per_step(self) -> int:
        """Prompts times responses per prompt."""
        return self.prompts_per_step * self.responses_per_prompt

    @property
    def sequences_per_rank(self) -> int:
        """Sequences of a step on one data-parallel rank."""
        return self.sequences_per_step // self.data_parallel_ranks

    @property
    def mini_batch_sequences(self) -> int:
        """Sequences per optimizer step, over all ranks."""
        return self.mini_batch_prompts * self.responses_per_prompt

    @property
    def mini_batch_sequences_per_rank(self) -> int:
        """Sequences per optimizer step on one data-parallel rank."""
        return self.mini_batch_sequences // self.data_parallel_ranks

    @property
    def optimizer_steps_per_training_step(self) -> int:
        """Mini-batches per pass times passes."""
        return self.prompts_per_step // self.mini_batch_prompts * self.ppo_epochs

    @property
    def max_tokens_per_step(self) -> int:
        """Tokens of a step if every prompt and response has full length."""
        return self.sequences_per_step * self.max_sequence_len

    @property
    def sequences_per_server(self) -> int:
        """Responses that one rollout server decodes per step, rounded up."""
        return -(-self.sequences_per_step // self.rollout_servers)

    def rows(self) -> list[tuple[str, str, str]]:
        """List the numbers: (name, value with unit, how it comes about)."""
        return [
            ("prompt batch", f"{self.prompts_per_step} prompts", "data.train_batch_size"),
            ("group", f"{self.responses_per_prompt} responses", "rollout.n"),
            ("sequences per step", f"{self.sequences_per_step}", "prompt batch x group"),
            ("data-parallel ranks", f"{self.data_parallel_ranks}", f"of {self.policy_ranks} policy ranks"),
            ("sequences per rank", f"{self.sequences_per_rank}", "sequences per step / data-parallel ranks"),
            ("mini-batch", f"{self.mini_batch_prompts} prompts", "actor.ppo_mini_batch_size"),
            ("mini-batch", f"{self.mini_batch_sequences} sequences", "prompts x group"),
            ("mini-batch per rank", f"{self.mini_batch_sequences_per_rank} sequences", "mini-batch / ranks"),
            (
                "optimizer steps per step",
                f"{self.optimizer_steps_per_training_step}",
                "prompt batch / mini-batch x ppo_epochs",
            ),
            ("micro-batch, update", self.actor.describe(), "at most, on one rank"),
            ("micro-batch, old log-probs", self.old_log_prob.describe(), "at most, on one rank"),
            ("micro-batch, reference", self.ref.describe(), "at most, on one rank"),
            ("rollout servers", f"{self.rollout_servers}", "devices of their pool / rollout TP"),
            ("responses per server", f"{self.sequences_per_server}", "per step, rounded up"),
            ("tokens per step", f"{self.max_tokens_per_step}", f"at most ({self.max_sequence_len} per sequence)"),
        ]

    def table(self) -> str:
        """Write the numbers as a text table."""
        return format_table(("batch", "value", "from"), self.rows())


@dataclass(frozen=True, kw_only=True)
class SupervisedBatchPlan:
    """One optimizer step of SFT or PRM training in numbers.

    Example:
        `SupervisedBatchPlan.from_config(config).sequences_per_rank`
    """

    sequences_per_step: int
    """Sequences per optimizer step, over all ranks."""
    ranks: int
    """Data-parallel ranks."""
    micro: MicroBatchLimit
    """Limit of a micro-batch."""

    @classmethod
    def from_config(cls, config: SFTTrainerConfig | PRMTrainerConfig) -> SupervisedBatchPlan:
        """Do the arithmetic of a checked configuration.

        Args:
            config: An SFT or PRM root without problems.

        Returns:
            The plan.
        """
        shared = config.ulysses_sequence_parallel_size
        budget = config.max_token_len_per_gpu or max(DEFAULT_TOKEN_BUDGET, config.data.max_length)
        limit = MicroBatchLimit(config.micro_batch_size_per_gpu, budget * shared)
        ranks = config.trainer.num_devices // shared
        return cls(sequences_per_step=config.data.train_batch_size, ranks=ranks, micro=limit)

    @property
    def sequences_per_rank(self) -> int:
        """Sequences of a step on one rank."""
        return self.sequences_per_step // self.ranks

    def table(self) -> str:
        """Write the numbers as a text table."""
        rows = [
            ("sequences per step", f"{self.sequences_per_step}", "data.train_batch_size"),
            ("sequences per rank", f"{self.sequences_per_rank}", f"over {self.ranks} data-parallel ranks"),
            ("micro-batch", self.micro.describe(), "at most, on one rank"),
        ]
        return format_table(("batch", "value", "from"), rows)
