# SPDX-License-Identifier: Apache-2.0
"""The plan of a run as text: placement, batch arithmetic, rough memory.

Logged at every start; `trainer.dry_run` ends there. Knows the configuration and local `config.json` files; starts
nothing and asks no device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from verl.config.batch_plan import BatchPlan, SupervisedBatchPlan
from verl.config.generation import GenerationConfig
from verl.config.memory import MemoryItem, prm_memory, rollout_memory, training_memory
from verl.config.model_shape import ModelShape, read_shape
from verl.config.placement import Placement, place
from verl.config.root import PPOTrainerConfig
from verl.config.sft import PRMTrainerConfig, SFTTrainerConfig
from verl.config.text import format_gib, format_table


@dataclass(frozen=True)
class RunPlan:
    """Everything that is decided before a process starts.

    Example:
        `logger.info("%s", build_plan(config).text())`
    """

    config: PPOTrainerConfig
    """The checked root."""
    placement: Placement
    """Who runs where."""
    batch: BatchPlan
    """Batch arithmetic."""
    policy_shape: ModelShape | None
    """The policy's shape, where it is known."""
    prm_shape: ModelShape | None
    """The PRM's shape, where it is known."""
    unknown: tuple[str, ...]
    """Why a shape is not known."""
    num_train_prompts: int | None
    """Rows of the training data after filtering, where they are known."""

    @property
    def total_training_steps(self) -> int | None:
        """Training steps of the run; None while the number of rows is unknown."""
        trainer = self.config.trainer
        if trainer.total_training_steps is not None:
            return trainer.total_training_steps
        if self.num_train_prompts is None:
            return None
        return self.num_train_prompts // self.batch.prompts_per_step * trainer.total_epochs

    def text(self) -> str:
        """Write the plan."""
        parts = [
            "Plan of the run",
            "",
            self._placement(),
            "",
            self.batch.table(),
            "",
            *self._length(),
            "",
            self._memory(),
        ]
        return "\n".join(parts)

    def _placement(self) -> str:
        rows = [
            (role.role, str(role.instances), str(role.devices_each or "-"), role.pool, role.note)
            for role in self.placement.roles
        ]
        found = (f"pool {name}: {nodes} x {devices} devices" for name, nodes, devices in self.placement.pools)
        pools = "  " + "; ".join(found)
        pools += f"; {self.placement.num_devices} in all (trainer.device={self.config.trainer.device})"
        return format_table(("role", "instances", "devices each", "pool", "how"), rows) + "\n" + pools

    def _length(self) -> list[str]:
        steps = self.total_training_steps
        if steps is None:
            epochs = self.config.trainer.total_epochs
            return [f"  training steps: {epochs} epoch(s), counted once the data is read"]
        tokens = steps * self.batch.max_tokens_per_step
        return [f"  training steps: {steps}, at most {tokens:.3g} tokens in all"]

    def _memory(self) -> str:
        lines = ["  memory per device (estimates)"]
        if self.policy_shape is not None:
            update = training_memory(self.config, self.policy_shape)
            lines += _memory_table("while updating", update)
            is_split = self.config.actor_rollout_ref.rollout.enable_resource_pool
            answering = rollout_memory(self.config, self.policy_shape)
            lines += _memory_table("rollout server" if is_split else "while answering", answering)
        if self.prm_shape is not None:
            lines += _memory_table("PRM replica", prm_memory(self.config.reward_model, self.prm_shape))
            lines += self._prm_context(self.prm_shape)
        lines += [f"  unknown: {reason}" for reason in self.unknown]
        return "\n".join(lines)

    def _prm_context(self, shape: ModelShape) -> list[str]:
        prm = self.config.reward_model
        limits = [limit for limit in (prm.max_length, shape.max_positions) if limit is not None]
        if not limits or min(limits) >= self.batch.max_sequence_len:
            return []
        how = prm.process_reward.overlong
        return [
            f"  the PRM reads {min(limits)} tokens, a sequence may have {self.batch.max_sequence_len}: overlong={how}"
        ]


def _memory_table(title: str, items: Sequence[MemoryItem]) -> list[str]:
    rows = [(item.name, format_gib(item.num_bytes), item.note) for item in items]
    rows.append(("sum", format_gib(sum(item.num_bytes for item in items)), ""))
    return [format_table((title, "size", "note"), rows, indent="    ")]


def build_plan(config: PPOTrainerConfig, num_train_prompts: int | None = None) -> RunPlan:
    """Work out the plan of a run.

    Args:
        config: A checked root.
        num_train_prompts: Rows of the training data after filtering, where they are known.

    Returns:
        The plan.
    """
    model = config.actor_rollout_ref.model
    policy_shape, policy_unknown = read_shape(model.path, model.override_config)
    prm_shape, prm_unknown = None, ""
    if config.reward_model.enable:
        prm_shape, prm_unknown = read_shape(config.reward_model.model.path)
    return RunPlan(
        config=config,
        placement=place(config),
        batch=BatchPlan.from_config(config),
        policy_shape=policy_shape,
        prm_shape=prm_shape,
        unknown=tuple(reason for reason in (policy_unknown, prm_unknown) if reason),
        num_train_prompts=num_train_prompts,
    )


def supervised_plan_text(config: SFTTrainerConfig | PRMTrainerConfig) -> str:
    """Write the plan of a supervised run.

    Args:
        config: A checked root.

    Returns:
        Ranks and batch arithmetic as text.
    """
    shape, unknown = read_shape(config.model.path, config.model.override_config)
    size = f"{shape.num_params:.3g} parameters" if shape is not None else f"size unknown: {unknown}"
    head = f"  model: {config.model.path} ({size})\n  ranks: {config.trainer.nnodes} x {config.trainer.n_gpus_per_node}"
    return f"Plan of the run\n\n{head}\n\n{SupervisedBatchPlan.from_config(config).table()}"


def generation_plan_text(config: GenerationConfig) -> str:
    """Write the plan of a run that only samples.

    Args:
        config: A checked root.

    Returns:
        Model, servers and sampling as text.
    """
    shape, unknown = read_shape(config.model.path, {})
    size = f"{shape.num_params:.3g} parameters" if shape is not None else f"size unknown: {unknown}"
    rollout = config.rollout
    sampled = f"temperature {rollout.temperature:g}, top_p {rollout.top_p:g}" if rollout.temperature else "greedy"
    tp = rollout.tensor_model_parallel_size
    lines = (
        f"model: {config.model.path} ({size})",
        f"prompts: {', '.join(config.data.path)}, up to {config.data.max_prompt_length} tokens each",
        f"responses: {config.n_samples} per prompt, up to {config.data.max_response_length} tokens, {sampled}",
        f"servers: {rollout.num_servers(config.trainer.num_devices)} x {rollout.name}, {tp} device(s) each",
        f"output: {config.output}",
    )
    return "Plan of the run\n\n" + "\n".join(f"  {line}" for line in lines)
