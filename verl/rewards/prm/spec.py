# SPDX-License-Identifier: Apache-2.0
"""Everything a scorer needs to know of its PRM, and the adapter made from it. Loads tokenizers, never weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from verl.rewards.prm.adapters import (
    AdapterSettings,
    PRMAdapter,
    get_prm_adapter,
    get_prm_head,
    resolve_adapter_name,
)
from verl.rewards.prm.files import PATH_KEY, REWARD_HEAD_FILE, find_folder, read_json, tensor_shapes
from verl.rewards.prm.heads import HeadSpec
from verl.rewards.prm.types import ScoreRequest, StepLogits
from verl.utils.errors import UserError
from verl.utils.tokenizer import load_tokenizer


@dataclass(frozen=True, kw_only=True)
class PRMSpec:
    """One PRM as it is to be run.

    Args:
        path: Folder or hub name.
        adapter: Registered adapter, or `auto`.
        mode: `step`, `scalar` or `legacy`.
        separator: What separates reasoning steps in the policy's responses.
        overlong: `window`, `extend` or `error`; see `AdapterSettings`.
        max_length: Longest input in tokens; None for the PRM's own context.
        longest_input: Longest input that the data can bring, tokens; how far `extend` extends without `max_length`.
        dtype: Dtype of the backbone; the head is always float32.
        device: `cuda`, `cpu` or `auto`; read by the in-process scorer.
        tensor_parallel_size: Devices per replica.
        gpu_memory_utilization: Share of a GPU that a served replica takes.
        kv_cache_bytes: Size of a served replica's KV cache; None to derive it from the share above.
        max_num_batched_tokens: Most tokens in one forward pass.
        max_num_seqs: Most sequences in one forward pass.
        enforce_eager: Whether a served replica goes without compilation and graphs.
        enable_sleep_mode: Whether the scorer can hand its device memory back between uses (CUDA only).
        engine_kwargs: Further arguments of the serving engine; they win.
        reference_path: Of an implicit PRM, folder or hub name of the language model that it is compared with.
        implicit_beta: Of an implicit PRM, what the log-ratio is multiplied by.
    """

    path: str
    adapter: str = "auto"
    mode: str = "step"
    separator: str = "\n\n"
    overlong: str = "window"
    max_length: int | None = None
    longest_input: int = 0
    dtype: str = "bfloat16"
    device: str = "auto"
    tensor_parallel_size: int = 1
    gpu_memory_utilization: float = 0.8
    kv_cache_bytes: int | None = None
    max_num_batched_tokens: int = 8192
    max_num_seqs: int = 256
    enforce_eager: bool = False
    enable_sleep_mode: bool = False
    engine_kwargs: Mapping[str, Any] = field(default_factory=dict)
    reference_path: str = ""
    implicit_beta: float = 0.05


@dataclass(frozen=True)
class LoadedAdapter:
    """An adapter with what was found out on the way.

    Args:
        adapter: Builds the PRM's inputs.
        name: Its registered name.
        reason: Why this one.
        context_tokens: The PRM's own context.
        max_tokens: Longest input the engine must take.
        head: What stands on the backbone; `verl.rewards.prm.heads.load_head(folder, head)` loads it.
        folder: Where the PRM lies.
    """

    adapter: PRMAdapter
    name: str
    reason: str
    context_tokens: int
    max_tokens: int
    head: HeadSpec
    folder: Path


class StepScorer(Protocol):
    """A scorer with a life: load it, ask it (it is a `ScoreSteps`), end it."""

    def __init__(self, spec: PRMSpec) -> None:
        """Remember the settings; nothing is loaded yet."""
        ...

    async def start(self) -> None:
        """Load the PRM."""
        ...

    async def __call__(self, request: ScoreRequest) -> StepLogits:
        """See `ScoreSteps`."""
        ...

    async def sleep(self) -> None:
        """Hand the device memory back, weights to the host; nothing is being scored. Needs `enable_sleep_mode`."""
        ...

    async def wake(self) -> None:
        """Take the device memory again."""
        ...

    async def close(self) -> None:
        """Free everything."""
        ...


def input_limits(spec: PRMSpec, config: Mapping[str, Any]) -> tuple[int, int]:
    """Work out how long inputs may be.

    Args:
        spec: The PRM's settings.
        config: Its config.json.

    Returns:
        The PRM's own context, and the longest input its engine must take, both in tokens.

    Raises:
        UserError: `max_length` exceeds the context, and `overlong` is not `extend`.
    """
    context = int(config.get("max_position_embeddings") or 0)
    if context < 1:
        raise UserError.for_key(PATH_KEY, spec.path, "its config.json must give max_position_embeddings", "Add it")
    if spec.overlong == "extend":
        return context, max(context, spec.max_length or spec.longest_input)
    if spec.max_length and spec.max_length > context:
        raise UserError.for_key(
            "reward_model.max_length",
            spec.max_length,
            f"must not exceed the PRM's context of {context} tokens",
            "Lower it, or set reward_model.process_reward.overlong=extend",
        )
    return context, spec.max_length or context


def load_adapter(spec: PRMSpec) -> LoadedAdapter:
    """Load the PRM's config and tokenizer, and build its adapter.

    Args:
        spec: The PRM's settings.

    Raises:
        UserError: No adapter fits, the tokenizer lacks the step token, or the lengths contradict each other.
    """
    folder = find_folder(spec.path)
    config = read_json(folder / "config.json", spec.path)
    name, reason = resolve_adapter_name(
        spec.adapter, config, spec.path, tensor_shapes(folder), (folder / REWARD_HEAD_FILE).is_file()
    )
    context_tokens, max_tokens = input_limits(spec, config)
    settings = AdapterSettings(
        context_tokens=context_tokens,
        max_tokens=max_tokens,
        overlong=spec.overlong,
        separator=spec.separator,
        reads_last_token=spec.mode == "legacy",
    )
    tokenizer = load_tokenizer(spec.path, key=PATH_KEY)
    adapter = get_prm_adapter(name)(tokenizer, settings)
    head = HeadSpec(get_prm_head(name), getattr(adapter, "verdict_ids", None))
    return LoadedAdapter(adapter, name, reason, context_tokens, max_tokens, head, folder)
