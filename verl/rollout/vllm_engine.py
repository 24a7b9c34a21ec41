# SPDX-License-Identifier: Apache-2.0
"""vLLM behind the rollout interface: one `AsyncLLM`, requests of n = 1, log-probs of the sampled distribution.

One request with n > 1 would come back only when all n responses are complete; G requests of n = 1 come back one by one,
and the prefix cache makes the shared prompt cheap.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from vllm import SamplingParams
from vllm.config import WeightTransferConfig
from vllm.distributed.weight_transfer.base import WeightTransferInitRequest, WeightTransferUpdateRequest
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine import PauseMode
from vllm.v1.engine.async_llm import AsyncLLM

from verl.rollout.base import FinishReason, Generation, GenerationRequest, RolloutSpec, SamplingSettings
from verl.rollout.update_gate import UpdateGate
from verl.weight_sync.vllm_plugin import receiver_name

_ALIVE_POLL_S = 1.0
Result = TypeVar("Result")


class VLLMEngine:
    """One vLLM engine.

    Example:
        >>> engine = VLLMEngine(RolloutSpec(model_path="Qwen/Qwen2.5-0.5B", dtype="bfloat16", max_model_len=4096))
        >>> await engine.start()
        >>> generation = await engine.generate(request)
    """

    def __init__(self, spec: RolloutSpec) -> None:
        """Remember the settings; nothing is loaded yet.

        Args:
            spec: Engine settings.
        """
        self._spec = spec
        self._llm: AsyncLLM | None = None
        self._policy_version = 0
        self._gate = UpdateGate()
        self._is_paused = False

    async def start(self) -> None:
        """See `RolloutEngine.start`."""
        self._llm = AsyncLLM.from_engine_args(engine_args(self._spec))

    async def generate(self, request: GenerationRequest) -> Generation:
        """See `RolloutEngine.generate`.

        Raises:
            RuntimeError: vLLM returned no final output.
        """
        final = None
        params = sampling_params(request.sampling)
        prompt = {"prompt_token_ids": request.prompt_token_ids}
        async with self._gate.passing():
            version = self._policy_version
            async for output in self._engine.generate(prompt, params, request.request_id):
                final = output
        if final is None or not final.outputs:
            raise RuntimeError(f"vLLM ended request {request.request_id} without output")
        completion = final.outputs[0]
        token_ids = list(completion.token_ids)
        log_probs = [entry[token].logprob for token, entry in zip(token_ids, completion.logprobs or [], strict=True)]
        return Generation(
            request_id=request.request_id,
            token_ids=token_ids,
            log_probs=log_probs,
            finish_reason=_finish_reason(completion.finish_reason),
            policy_version=version,
        )

    async def init_transfer(self, init_info: dict[str, Any]) -> None:
        """See `RolloutEngine.init_transfer`."""
        await self._while_alive(self._engine.init_weight_transfer_engine(WeightTransferInitRequest(init_info)))

    async def start_update(self) -> None:
        """See `RolloutEngine.start_update`.

        Frozen requests lose their KV cache and are prefilled anew when scheduling goes on: their further tokens are
        those of the new policy after what was said so far.
        """
        self._gate.close()
        if self._spec.in_flight_update != "keep":
            await self._while_alive(self._gate.drained())
        # without requests in the engine nothing need be paused, which takes vLLM 20 ms and more
        if self._gate.in_flight or not await self._while_alive(self._engine.reset_prefix_cache()):
            mode: PauseMode = "keep" if self._spec.in_flight_update == "keep" else "wait"
            await self._while_alive(self._engine.pause_generation(mode=mode, clear_cache=True))
            self._is_paused = True
        await self._while_alive(self._engine.start_weight_update())

    async def update(self, payload: dict[str, Any]) -> None:
        """See `RolloutEngine.update`."""
        await self._while_alive(self._engine.update_weights(WeightTransferUpdateRequest(payload)))

    async def finish_update(self, version: int) -> None:
        """See `RolloutEngine.finish_update`."""
        await self._while_alive(self._engine.finish_weight_update())
        self._policy_version = version
        if self._is_paused:
            await self._while_alive(self._engine.resume_generation())
            self._is_paused = False
        self._gate.open()

    async def sleep(self) -> None:
        """See `RolloutEngine.sleep`; level 2 drops the weights too, the next sync brings new ones."""
        if self._spec.enable_sleep_mode:
            await self._while_alive(self._engine.sleep(level=2))

    async def wake(self, for_update: bool = False) -> None:
        """See `RolloutEngine.wake`."""
        if self._spec.enable_sleep_mode:
            await self._while_alive(self._engine.wake_up(["weights"] if for_update else None))

    async def close(self) -> None:
        """See `RolloutEngine.close`."""
        if self._llm is not None:
            self._llm.shutdown()
            self._llm = None

    async def _while_alive(self, call: Coroutine[Any, Any, Result]) -> Result:
        return await while_alive(self._engine, call)

    @property
    def _engine(self) -> AsyncLLM:
        assert self._llm is not None, "start() was not awaited"
        return self._llm


async def while_alive(engine: AsyncLLM, call: Coroutine[Any, Any, Result]) -> Result:
    """Wait for vLLM's answer, or for its process to be gone: vLLM itself would wait for ever.

    Args:
        engine: Who is asked.
        call: What it is asked.

    Returns:
        The answer.

    Raises:
        RuntimeError: The engine's process is gone.
    """
    answer = asyncio.ensure_future(call)
    while not answer.done():
        await asyncio.wait({answer}, timeout=_ALIVE_POLL_S)
        if not answer.done() and engine.errored:
            answer.cancel()
            raise RuntimeError("vLLM's engine process is gone (killed, or out of memory)")
    return answer.result()


def engine_args(spec: RolloutSpec) -> AsyncEngineArgs:
    """Translate the settings.

    Args:
        spec: Engine settings.

    Returns:
        vLLM's arguments; `spec.engine_kwargs` wins over what is derived here.
    """
    derived: dict[str, Any] = {
        "model": spec.model_path,
        "dtype": spec.dtype,
        "max_model_len": spec.max_model_len,
        "max_num_seqs": spec.max_num_seqs,
        # vLLM wants a step to hold at least one token per running sequence
        "max_num_batched_tokens": max(spec.max_num_batched_tokens, spec.max_num_seqs),
        "tensor_parallel_size": spec.tensor_parallel_size,
        "distributed_executor_backend": executor_backend(spec.device, spec.tensor_parallel_size),
        "enforce_eager": spec.enforce_eager,
        "enable_chunked_prefill": spec.enable_chunked_prefill,
        "enable_prefix_caching": spec.enable_prefix_caching,
        "enable_sleep_mode": spec.enable_sleep_mode,
        "logprobs_mode": "processed_logprobs",
        "weight_transfer_config": WeightTransferConfig(backend=receiver_name(spec.weight_sync)),
        "seed": spec.seed,
        "trust_remote_code": spec.trust_remote_code,
        "disable_log_stats": True,
        "skip_tokenizer_init": True,
        "generation_config": "vllm",
    }
    if spec.kv_cache_bytes is not None:
        derived["kv_cache_memory_bytes"] = spec.kv_cache_bytes
    else:
        derived["gpu_memory_utilization"] = spec.gpu_memory_utilization
    return AsyncEngineArgs(**(derived | spec.engine_kwargs))


def executor_backend(device: str, tensor_parallel_size: int) -> str | None:
    """Choose where the model of one engine runs.

    vLLM gives a model on a CPU a process of its own, and the scheduler's process spins while it waits for it, on the
    cores that should multiply. The environment that this separates for OpenMP is set for our actors anyway, so a model
    without tensor parallelism runs in the scheduler's process, as on a GPU; by its path, since the name is overruled.

    With tensor parallelism the ranks are processes of the engine. Left to itself vLLM would see that its actor belongs
    to a placement group and ask Ray for an actor per GPU there, where the policy's ranks have them all.

    Args:
        device: `cpu` or `cuda`.
        tensor_parallel_size: Devices of the engine.

    Returns:
        Value of `distributed_executor_backend`; None for vLLM's choice.
    """
    if device == "cpu" and tensor_parallel_size == 1:
        return "vllm.v1.executor.uniproc_executor.UniProcExecutor"
    return "mp" if tensor_parallel_size > 1 else None


def sampling_params(settings: SamplingSettings) -> SamplingParams:
    """Translate one request's settings.

    Args:
        settings: How to sample.

    Returns:
        vLLM's parameters, with the sampled token's log-prob asked for and only the final output returned.
    """
    return SamplingParams(
        n=1,
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        max_tokens=settings.max_new_tokens,
        seed=settings.seed,
        stop_token_ids=[] if settings.ignore_eos else list(settings.stop_token_ids),
        ignore_eos=settings.ignore_eos,
        logprobs=0,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def _finish_reason(reason: str | None) -> FinishReason:
    if reason in ("stop", "length"):
        return "stop" if reason == "stop" else "length"
    return "abort"
