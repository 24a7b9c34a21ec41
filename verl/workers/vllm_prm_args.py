# SPDX-License-Identifier: Apache-2.0
"""A PRM's settings in vLLM's words. Translates; starts nothing."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from vllm.config import PoolerConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.platforms import current_platform

from verl.rewards.prm.spec import LoadedAdapter, PRMSpec
from verl.rollout.vllm_engine import executor_backend
from verl.workers.vllm_plugin import ARCHITECTURE


def pooling_args(spec: PRMSpec, loaded: LoadedAdapter) -> AsyncEngineArgs:
    """Settings of an engine that gives a PRM's logits of every token.

    `ALL` pooling, no softmax, rows chosen by the caller: vLLM's `STEP` pooling allows no chunked prefill, assumes
    Qwen's id of the step token, and cannot read a response's last token.

    Args:
        spec: The PRM and how to serve it.
        loaded: Its adapter, head and lengths.

    Returns:
        vLLM's arguments; `spec.engine_kwargs` wins over what is derived here.
    """
    overrides: dict[str, Any] = {}
    if loaded.head.kind != "process":  # that one vLLM knows itself, and splits over tensor parallel ranks
        head = {"folder": str(loaded.folder), **asdict(loaded.head)}
        overrides = {"architectures": [ARCHITECTURE], "verl_step_head": head}
    settings = {
        "runner": "pooling",
        "pooler_config": PoolerConfig(tok_pooling_type="ALL", use_activation=False),
        # Of use only where the verdict stands at an input's last token: one input per step, each a prefix of the next.
        "enable_prefix_caching": loaded.head.kind == "reward_file",
    }
    return _engine_args(spec, loaded, loaded.folder, settings, overrides)


def language_model_args(spec: PRMSpec, loaded: LoadedAdapter, folder: Path, num_engines: int) -> AsyncEngineArgs:
    """Settings of an engine that gives log-probs of the tokens it is shown.

    Args:
        spec: The PRM and how to serve it.
        loaded: Its adapter and lengths.
        folder: The language model.
        num_engines: Engines that share the device's memory.

    Returns:
        vLLM's arguments; `spec.engine_kwargs` wins over what is derived here.
    """
    settings = {
        "runner": "generate",
        "enable_prefix_caching": False,  # requests for log-probs of the input must not read it
        "generation_config": "vllm",
        "gpu_memory_utilization": spec.gpu_memory_utilization / num_engines,
        "kv_cache_memory_bytes": spec.kv_cache_bytes // num_engines if spec.kv_cache_bytes is not None else None,
    }
    # A reward is the difference of two log-probs: logits rounded to bfloat16 would be much of it.
    return _engine_args(spec, loaded, folder, settings, {"head_dtype": "float32"})


def _engine_args(
    spec: PRMSpec, loaded: LoadedAdapter, folder: Path, settings: dict[str, Any], overrides: dict[str, Any]
) -> AsyncEngineArgs:
    if loaded.max_tokens > loaded.context_tokens:
        # Sizes the table of rotary positions too, which max_model_len alone does not.
        overrides = overrides | {"max_position_embeddings": loaded.max_tokens}
    derived = {
        "model": str(folder),
        # Mistral's own format may lie beside the usual one, under other names of tensors.
        "config_format": "hf",
        "load_format": "hf",
        "dtype": spec.dtype,
        "hf_overrides": overrides,
        "max_model_len": loaded.max_tokens,
        "max_num_seqs": spec.max_num_seqs,
        "max_num_batched_tokens": max(spec.max_num_batched_tokens, spec.max_num_seqs),
        "gpu_memory_utilization": spec.gpu_memory_utilization,
        "kv_cache_memory_bytes": spec.kv_cache_bytes,
        "tensor_parallel_size": spec.tensor_parallel_size,
        "distributed_executor_backend": executor_backend(current_platform.device_type, spec.tensor_parallel_size),
        "enforce_eager": spec.enforce_eager,
        "enable_sleep_mode": spec.enable_sleep_mode,
        "enable_chunked_prefill": True,
        "disable_log_stats": True,
        "skip_tokenizer_init": True,
    }
    return AsyncEngineArgs(**(derived | settings | dict(spec.engine_kwargs)))
