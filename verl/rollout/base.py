# SPDX-License-Identifier: Apache-2.0
"""What every rollout engine offers and the values that go in and out. Knows no engine, no Ray, no trainer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

FinishReason = Literal["stop", "length", "abort"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingSettings:
    """How to sample a response.

    Attributes:
        temperature: Divides the logits; 0 means greedy.
        top_p: Nucleus mass in (0, 1]; 1 keeps the whole vocabulary.
        top_k: Number of tokens kept; -1 keeps all.
        max_new_tokens: Response limit in tokens, EOS included.
        seed: Seed of the request's sampler; None for the engine's own.
        stop_token_ids: Tokens that end a response; the one sampled is part of the response.
        ignore_eos: Go on after EOS, for measurements of equal length.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    max_new_tokens: int
    seed: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One response to sample.

    Attributes:
        request_id: Unique while in flight.
        prompt_token_ids: The prompt, chat template applied.
        sampling: How to sample.
    """

    request_id: str
    prompt_token_ids: list[int]
    sampling: SamplingSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """One sampled response.

    Attributes:
        request_id: Of the request.
        token_ids: Response tokens, EOS included when it was sampled.
        log_probs: Natural log of the probability under the sampled (temperature-scaled) distribution, one per token.
        finish_reason: `stop` (EOS), `length` (cut at `max_new_tokens`) or `abort`.
        policy_version: Version of the weights that sampled it; where they changed on the way, of those in force when
            the engine took it on: no token is of older ones.
    """

    request_id: str
    token_ids: list[int]
    log_probs: list[float]
    finish_reason: FinishReason
    policy_version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """Where the server of an engine runs that is spoken to over HTTP.

    Attributes:
        python: Interpreter of the environment that holds the engine; used to start a server.
        url: A running server to join instead, e.g. `http://node7:30000`; empty to start one.
        env: Further environment variables of a started server.
        arguments: Further launch arguments of a started server, by name without dashes; they win over derived ones.
        start_timeout_s: Longest wait until the server answers, seconds.
    """

    python: str = ""
    url: str = ""
    env: dict[str, str] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)
    start_timeout_s: float = 900.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutSpec:
    """Everything an engine needs to start.

    Attributes:
        model_path: Folder or hub id with config, weights and tokenizer.
        dtype: torch dtype name of weights and activations.
        max_model_len: Prompt plus response limit in tokens.
        max_num_seqs: Responses decoded at the same time.
        max_num_batched_tokens: Tokens of one engine step.
        tensor_parallel_size: GPUs of one engine.
        gpu_memory_utilization: Share of the device's memory the engine may take.
        kv_cache_bytes: Size of the KV cache; None lets the engine derive it from `gpu_memory_utilization`.
        enforce_eager: No CUDA graphs.
        enable_chunked_prefill: Split long prompts over engine steps.
        enable_prefix_caching: Share the prompt's KV cache inside a group.
        enable_sleep_mode: The engine can hand its memory back between rollouts (CUDA only).
        weight_sync: Backend name: `shared_memory`, `ipc`, `gloo` or `nccl`.
        in_flight_update: What a weight sync does to requests in flight: `wait` for them, or `keep` them frozen.
        seed: Engine seed.
        trust_remote_code: Allow the model folder's own code.
        device: `cpu` or `cuda`.
        engine_kwargs: Passed to the engine as they are.
        server: For an engine behind HTTP; None for one that lives in this process.
    """

    model_path: str
    dtype: str
    max_model_len: int
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    tensor_parallel_size: int = 1
    gpu_memory_utilization: float = 0.6
    kv_cache_bytes: int | None = None
    enforce_eager: bool = False
    enable_chunked_prefill: bool = True
    enable_prefix_caching: bool = True
    enable_sleep_mode: bool = False
    weight_sync: str = "shared_memory"
    in_flight_update: str = "wait"
    seed: int = 0
    trust_remote_code: bool = False
    device: str = "cpu"
    engine_kwargs: dict[str, Any] = field(default_factory=dict)
    server: ServerSettings | None = None


class RolloutEngine(Protocol):
    """An engine that samples. All methods are coroutines on one event loop; `generate` may run many times at once."""

    async def start(self) -> None:
        """Load the model; returns when requests can be served."""

    async def generate(self, request: GenerationRequest) -> Generation:
        """Sample one response; returns the moment it is complete."""

    async def init_transfer(self, init_info: dict[str, Any]) -> None:
        """Prepare the weight sync backend."""

    async def start_update(self) -> None:
        """Stop scheduling and get ready for new weights; requests in flight end first, or stay (`in_flight_update`)."""

    async def update(self, payload: dict[str, Any]) -> None:
        """Take in one chunk of weights."""

    async def finish_update(self, version: int) -> None:
        """End the update: drop the prefix cache, set the policy version, go on scheduling."""

    async def sleep(self) -> None:
        """Hand device memory back (weights and KV cache)."""

    async def wake(self, for_update: bool = False) -> None:
        """Take device memory again; weights must be synced before the next request.

        Args:
            for_update: Take no more than new weights need, so that they fit beside the policy's; all of it is taken
                when this is called again without.
        """

    async def close(self) -> None:
        """Stop the engine and its processes."""
