# SPDX-License-Identifier: Apache-2.0
"""Sections `reward_model` and `custom_reward_function`: rule verifier, PRM and how their scores are blended.

Does not know the estimator.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from verl.config.alarms import AlarmsConfig
from verl.config.fields import free_mapping, limited, path_field
from verl.config.names import (
    DType,
    Gate,
    OnScoringError,
    OverlongForPRM,
    PRMAdapterName,
    PRMBackend,
    PRMMode,
    RewardManagerName,
    ScoreSpace,
    StepAggregation,
)


@dataclass(frozen=True, kw_only=True)
class RewardModelModelConfig:
    """The PRM's weights (it is loaded natively, with its own tokenizer)."""

    path: str = path_field("")
    """Local folder or hub id (`org/name`) of the PRM. Required when `reward_model.enable`."""


@dataclass(frozen=True, kw_only=True)
class OverlongBufferConfig:
    """DAPO's soft penalty for responses near the length limit (arXiv 2503.14476, Eq.

    13); a column of its own, added to r_out.
    """

    enable: bool = False
    """Punish overlong responses (needs `reward_manager=dapo`)."""
    len: int = limited(4096, low=1)
    """The penalty grows over the last tokens before `data.max_response_length`. Unit: tokens."""
    penalty_factor: float = limited(1.0, low=0.0)
    """Penalty at the limit: r_out falls by at most this."""


@dataclass(frozen=True, kw_only=True)
class ImplicitPRMConfig:
    """Step rewards as log-ratios of two language models: r_k = beta * sum over the step's tokens of (log pi - log ref).

    Read only by `adapter=implicit_prm` (EurusPRM, PRIME).
    """

    reference_path: str = path_field("")
    """Local folder or hub id of the reference model, with the PRM's tokenizer. Required by `implicit_prm`."""
    beta: float = limited(0.05, above=0.0)
    """Factor of the log-ratio (PRIME: 0.05)."""


@dataclass(frozen=True, kw_only=True)
class ProcessRewardConfig:
    """From step scores to rewards.

    Eq. 11: r_hat = agg_k s_k + alpha * s_traj. Eq. 12: r = (1-beta) * r_out + beta * r_hat.
    """

    adapter: PRMAdapterName = "auto"
    """PRM family: prompt format, separator token, head. `auto` reads the model's config and files; name it for plain
    language models (`math_shepherd`, `rlhflow_prm`, `implicit_prm`)."""
    implicit: ImplicitPRMConfig = field(default_factory=ImplicitPRMConfig)
    """What an implicit PRM is compared with."""
    backend: PRMBackend = "vllm"
    """Who runs the PRM: `vllm` pooling servers, or `hf` (plain transformers forward, for comparison)."""
    mode: PRMMode = "step"
    """`step`: dense rewards at step ends; `scalar`: all of Eq. 12 on the last token; `legacy`: the published code
    (one step)."""
    step_separator: str = "\n\n"
    """Text that separates reasoning steps; `</think>` always does."""
    min_step_chars: int = limited(0, low=0)
    """Shorter pieces join the piece before; 0 = off. Unit: characters."""
    max_step_chars: int = limited(0, low=1, or_value=0)
    """Longer pieces are cut at a line or space; 0 = off. Unit: characters."""
    score_space: ScoreSpace = "prob"
    """Step score s: probability p, signed 2p-1, or clipped difference of the logits."""
    aggregation: StepAggregation = "mean"
    """agg in Eq. 11 (`prod` needs `score_space=prob`)."""
    alpha: float = limited(1.0, low=0.0)
    """Weight of the trajectory score in Eq. 11. Not read by `grpo_ps`."""
    beta: float = limited(0.75, low=0.0, high=1.0)
    """Weight of the process reward in Eq. 12: 0 = rule only, 1 = PRM only."""
    beta_schedule: tuple[tuple[float, float], ...] = ()
    """Points [training step, beta], joined by straight lines, that replace `beta`; empty = constant."""
    gate: Gate = "none"
    """Process reward by correctness: always (`none`), only if correct, or with the sign of the outcome."""
    rule_range: tuple[float, float] = (-1.0, 1.0)
    """r_out of a wrong and of a right answer. A custom reward function's own float is left as it is."""
    on_error: OnScoringError = "rule_only"
    """When the PRM fails for a response after all retries: whole group by rule only, drop the group, or stop."""
    overlong: OverlongForPRM = "window"
    """Input over the PRM's context: score in windows, extend the context, or stop."""

    def beta_at(self, training_step: int) -> float:
        """Give the weight of Eq. 12 in force.

        Args:
            training_step: Number of the training step, from 0.

        Returns:
            beta in [0, 1]; before the first and after the last point of the schedule it is constant.
        """
        if not self.beta_schedule:
            return self.beta
        points = sorted(self.beta_schedule)
        if training_step <= points[0][0]:
            return points[0][1]
        for (left, beta_left), (right, beta_right) in zip(points, points[1:], strict=False):
            if training_step < right:
                return beta_left + (beta_right - beta_left) * (training_step - left) / (right - left)
        return points[-1][1]


@dataclass(frozen=True, kw_only=True)
class RewardModelConfig:
    """Scoring of responses: the PRM and its devices, and the rule verifier's workers."""

    enable: bool = False
    """Use a PRM; off = rule reward only."""
    model: RewardModelModelConfig = field(default_factory=RewardModelModelConfig)
    """The PRM's weights."""
    enable_resource_pool: bool = False
    """Give the PRM devices of its own (`nnodes x n_gpus_per_node`, on top of the policy's); off = it shares the
    policy's."""
    nnodes: int = limited(1, low=1)
    """Nodes of the PRM's own pool. Unit: nodes."""
    n_gpus_per_node: int = limited(0, low=0)
    """Devices per node of the PRM's own pool; on a CPU a device is one process. Unit: devices."""
    tensor_model_parallel_size: int = limited(1, low=1)
    """Devices per PRM replica. Unit: devices."""
    gpu_memory_utilization: float = limited(0.8, above=0.0, high=1.0)
    """Share of each device's memory given to a PRM replica."""
    cpu_kvcache_gib: float = limited(1.0, above=0.0)
    """KV cache of one PRM replica when it runs on a CPU. Unit: GiB."""
    dtype: DType = "bfloat16"
    """Type of the PRM's weights (scores are always computed in float32 from its logits)."""
    max_length: int | None = limited(None, low=1)
    """Longest PRM input; null = the PRM's own context. Unit: tokens."""
    max_num_batched_tokens: int = limited(8192, low=1)
    """Most tokens in one forward of a replica. Unit: tokens."""
    max_num_seqs: int = limited(256, low=1)
    """Most sequences in one forward of a replica. Unit: sequences."""
    enforce_eager: bool = False
    """Do not capture CUDA graphs."""
    free_cache_engine: bool = True
    """Put the PRM's weights into host memory and free its KV cache from the last score of a step to the next rollout,
    while the policy trains on the same GPUs. No effect on a CPU, with a pool of the PRM's own, nor with
    `trainer.max_staleness` above 0, where responses are scored all the time."""
    engine_kwargs: Mapping[str, Any] = free_mapping()
    """Extra arguments for the PRM's engine as they are."""
    timeout_s: float = limited(600.0, above=0.0)
    """Longest wait for one response's step scores. Unit: seconds."""
    max_retries: int = limited(2, low=0)
    """How often a failed scoring is tried again, on another replica if there is one."""
    score_cache_entries: int = limited(4096, low=0)
    """Answers whose step scores are remembered, least recently used out first: an identical answer to the same problem
    is not scored again. 0 = off. Unit: responses."""
    overlap_rollout: bool = True
    """Score each response as it ends, beside the rollout; off = all of them after it, which a PRM that shares the
    policy's devices may prefer."""
    start_timeout_s: float = limited(900.0, above=0.0)
    """Longest wait for a replica to load the PRM. Unit: seconds."""
    reward_manager: RewardManagerName = "naive"
    """`naive`: rule score as it is; `dapo`: with the overlong penalty where `overlong_buffer.enable`; `prime`: a failed
    or late verdict of a custom function counts as wrong; `batch`: a custom function judges the whole batch in one call;
    `process`: a custom function may give the `step_scores` too, in place of the PRM."""
    overlong_buffer: OverlongBufferConfig = field(default_factory=OverlongBufferConfig)
    """DAPO's overlong penalty."""
    num_verifier_workers: int = limited(4, low=1)
    """Processes that run the rule verifier. Unit: processes."""
    verifier_timeout_s: float = limited(10.0, above=0.0)
    """Longest time for one rule verdict, or for the one call of `reward_manager=batch`; then the worker is killed and
    the answer counts as wrong (a custom function's score as missing; both counted). Unit: seconds."""
    process_reward: ProcessRewardConfig = field(default_factory=ProcessRewardConfig)
    """From step scores to rewards."""
    alarms: AlarmsConfig = field(default_factory=AlarmsConfig)
    """Warnings, or an end, when the policy learns to please the PRM instead of being right."""


@dataclass(frozen=True, kw_only=True)
class CustomRewardFunctionConfig:
    """A rule function of the user, sync or async: `f(data_source, solution_str, ground_truth, extra_info,
    **reward_kwargs) -> float | dict`.

    Of a dict `score` is read, `acc` (or `is_correct`), `pred` and, by `reward_manager=process`, `step_scores`; its
    other numbers become metrics `reward/NAME/mean`. With `reward_manager=batch`: `f(data_sources, solution_strs,
    ground_truths, extra_infos, **reward_kwargs) -> list`.
    """

    path: str | None = path_field()
    """Python file that holds the function; null = the built-in rules, chosen by `data.reward_fn_key`."""
    name: str = "compute_score"
    """Name of the function in that file."""
    reward_kwargs: Mapping[str, Any] = free_mapping()
    """Extra keyword arguments of the function."""
