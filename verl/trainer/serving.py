# SPDX-License-Identifier: Apache-2.0
"""Engines as Ray actors: from the user's keys to a running server and its end. Knows no prompt and no trainer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import GetTimeoutError

from verl.config.rollout import ServingConfig
from verl.rollout.base import RolloutSpec, ServerSettings
from verl.single_controller import ResourcePool
from verl.trainer.ppo.placement import ServerSlot, actor_environment, server_slots

_MAX_CONCURRENT_GROUPS = 4096
_CLOSE_TIMEOUT_S = 20.0


def engine_arguments(rollout: ServingConfig, longest: int, device: str) -> dict[str, Any]:
    """Translate what training and `main_generation` say alike about their engines.

    Args:
        rollout: The section.
        longest: Longest prompt plus longest response, tokens.
        device: `cuda` or `cpu`.

    Returns:
        Arguments of `RolloutSpec`.
    """
    return {
        "dtype": rollout.dtype,
        "max_model_len": rollout.max_model_len or longest,
        "max_num_seqs": rollout.max_num_seqs,
        "max_num_batched_tokens": rollout.max_num_batched_tokens,
        "tensor_parallel_size": rollout.tensor_model_parallel_size,
        "gpu_memory_utilization": rollout.gpu_memory_utilization,
        "kv_cache_bytes": int(rollout.cpu_kvcache_gib * (1 << 30)) if device == "cpu" else None,
        "enforce_eager": rollout.enforce_eager,
        "enable_chunked_prefill": rollout.enable_chunked_prefill,
        "enable_prefix_caching": rollout.enable_prefix_caching,
        "device": device,
        "engine_kwargs": dict(rollout.engine_kwargs),
        "server": _server_settings(rollout) if rollout.name == "sglang" else None,
    }


def serving_slots(rollout: ServingConfig, pool: ResourcePool) -> list[ServerSlot]:
    """Places of the rollout servers.

    Args:
        rollout: The section.
        pool: The devices.

    Returns:
        One slot per server that is started; for servers joined by URL one each, without devices, spread over the nodes.
    """
    if rollout.joins_servers:
        return [ServerSlot(index % pool.num_nodes, ()) for index in range(len(rollout.sglang.urls))]
    return server_slots(pool, rollout.tensor_model_parallel_size)


def spec_of_server(spec: RolloutSpec, rollout: ServingConfig, index: int) -> RolloutSpec:
    """Settings of one of the rollout servers.

    Args:
        spec: Of all of them.
        rollout: The section.
        index: Of its slot.

    Returns:
        The settings, with its URL where it is joined.
    """
    if spec.server is None or not rollout.joins_servers:
        return spec
    return replace(spec, server=replace(spec.server, url=rollout.sglang.urls[index]))


def _server_settings(rollout: ServingConfig) -> ServerSettings:
    return ServerSettings(
        python=rollout.sglang.interpreter,
        env={name: str(value) for name, value in rollout.sglang.env.items()},
        arguments=dict(rollout.sglang.server_args),
        start_timeout_s=rollout.start_timeout_s,
    )


def server_class(actor: type, pool: ResourcePool, slot: ServerSlot, devices: str = "", num_gpus: int = 0) -> Any:
    """Give an actor class its place.

    Args:
        actor: The class.
        pool: The devices.
        slot: Room for one engine.
        devices: Names of devices that it shares with others.
        num_gpus: Devices of its own instead.

    Returns:
        A Ray actor class; its `remote` starts the server.
    """
    environment = actor_environment(pool.device)
    if pool.device == "cuda" and devices:
        environment["CUDA_VISIBLE_DEVICES"] = devices
    return ray.remote(actor).options(
        num_cpus=0,
        num_gpus=num_gpus if pool.device == "cuda" else 0,
        scheduling_strategy=pool.scheduling(slot.node_index),
        runtime_env={"env_vars": environment},
        max_concurrency=_MAX_CONCURRENT_GROUPS,
    )


def wait_until_started(started: list[Any], what: str, timeout_s: float) -> None:
    """Wait for the references that `start` gave.

    Args:
        started: The references.
        what: Name of these servers, for the message.
        timeout_s: Longest wait, seconds.

    Raises:
        RuntimeError: They did not all start in time.
    """
    try:
        ray.get(started, timeout=timeout_s)
    except GetTimeoutError as error:
        raise RuntimeError(f"{what}: {len(started)} of them did not all start in {timeout_s:.0f} s") from error


def close_servers(servers: list[Any]) -> None:
    """Ask the engines to end their own processes, then end the actors whatever they answered.

    Args:
        servers: Actor handles.
    """
    ray.wait([server.close.remote() for server in servers], num_returns=len(servers), timeout=_CLOSE_TIMEOUT_S)
    for server in servers:
        ray.kill(server)
