# SPDX-License-Identifier: Apache-2.0
"""Everything that runs beside the driver: policy ranks, rollout servers, PRM replicas, verifier processes.

Started once, in the order in which they depend on each other; whatever did start is closed when a later one fails.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import ray

from verl.config import PPOTrainerConfig
from verl.config.batch_plan import BatchPlan
from verl.config.rollout import RolloutConfig
from verl.rewards.loop import RewardLoop
from verl.rewards.rule_pool import RuleVerifierPool
from verl.rollout.base import RolloutSpec
from verl.single_controller import RayWorkerGroup, WorkerSpec
from verl.trainer.ppo.placement import (
    ResourcePoolManager,
    Role,
    actor_environment,
    scorers_sleep,
    server_slots,
    servers_sleep,
    shares_policy_gpus,
)
from verl.trainer.ppo.reward_setup import build_reward_loop, custom_function, prm_spec
from verl.trainer.ppo.rollout_stream import RolloutStream, SubmitSettings
from verl.trainer.serving import (
    close_servers,
    engine_arguments,
    server_class,
    serving_slots,
    spec_of_server,
    wait_until_started,
)
from verl.utils.async_loop import BackgroundLoop
from verl.utils.tokenizer import load_tokenizer
from verl.workers.actor_rollout_ref import ActorRolloutRefWorker
from verl.workers.process_reward import ProcessRewardServer
from verl.workers.rollout_server import RolloutServer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Runtime:
    """The running parts, for the trainer.

    Args:
        actor: The policy ranks.
        servers: Rollout server handles.
        prm_servers: PRM server handles, empty without a PRM.
        stream: Spreads groups over the rollout servers.
        reward_loop: Scores responses as they arrive.
        loop: Event loop on which stream and reward loop live.
        total_training_steps: Of the run.
        pad_token_id: The policy tokenizer's.
        num_devices: Devices of all pools.
        sleeps: Whether rollout servers hand their memory back between rollouts.
        scorers_sleep: Whether PRM servers do, from the last score of a step to the next rollout.
    """

    actor: Any
    servers: Sequence[Any]
    prm_servers: Sequence[Any]
    stream: RolloutStream
    reward_loop: RewardLoop
    loop: BackgroundLoop
    total_training_steps: int
    pad_token_id: int
    num_devices: int
    sleeps: bool
    scorers_sleep: bool

    def sleep_servers(self) -> None:
        """Let the rollout servers hand their device memory back; nothing happens where they keep it."""
        if self.sleeps:
            ray.get([server.sleep.remote() for server in self.servers])

    async def sleep_scorers(self) -> None:
        """Let the PRM servers hand their device memory back; nothing happens where they keep it."""
        if self.scorers_sleep:
            await asyncio.gather(*(server.sleep.remote() for server in self.prm_servers))

    def wake_scorers(self) -> None:
        """Let the PRM servers take their device memory again."""
        if self.scorers_sleep:
            ray.get([server.wake.remote() for server in self.prm_servers])

    def wake_servers(self, for_update: bool = False) -> None:
        """Let the rollout servers take their device memory again.

        Args:
            for_update: Only what new weights need; the rest when they are there and the policy's are put away.
        """
        if self.sleeps:
            ray.get([server.wake.remote(for_update) for server in self.servers])


def start_runtime(config: PPOTrainerConfig, device: str, total_training_steps: int, stack: ExitStack) -> Runtime:
    """Start everything.

    Args:
        config: The run's configuration.
        device: `cuda` or `cpu`.
        total_training_steps: Of the run.
        stack: Gets the closing of every part as soon as it runs.

    Returns:
        The running parts.

    Raises:
        UserError: The cluster is too small, or a model cannot be loaded.
        RuntimeError: A part did not start in time.
    """
    pools = ResourcePoolManager(config, device)
    pools.acquire()
    stack.callback(pools.release)
    # side by side, unless they share a GPU: there one after the other, since an engine measures what memory is left
    prm_shares, rollout_shares = shares_policy_gpus(config, device)
    prm_started: list[Any] = []
    if not prm_shares:
        prm_servers, prm_started = _start_prm_servers(config, pools, "", stack)
    actor = _start_actor(config, pools, stack)
    if prm_shares or rollout_shares:
        _init_actor(actor, config, total_training_steps)
    if prm_shares:
        visible = [devices for _, devices in actor.node_devices()]
        devices = ",".join(visible[: config.reward_model.tensor_model_parallel_size])
        prm_servers, prm_started = _start_prm_servers(config, pools, devices, stack)
        wait_until_started(prm_started, "PRM servers", config.reward_model.start_timeout_s)
    servers_by_node, started = _start_rollout_servers(config, pools, actor, stack)
    if not (prm_shares or rollout_shares):
        _init_actor(actor, config, total_training_steps)
    wait_until_started(started, "rollout servers", config.actor_rollout_ref.rollout.start_timeout_s)
    wait_until_started(prm_started, "PRM servers", config.reward_model.start_timeout_s)
    actor.init_weight_sync(sync_backend(config, device), servers_by_node)
    loop = BackgroundLoop("verl-stream")
    stack.callback(loop.close)
    verifier = loop.run(_start_verifier(config), timeout_s=300)
    stack.callback(verifier.close)
    servers = [server for node in servers_by_node for server in node]
    return Runtime(
        actor=actor,
        servers=servers,
        prm_servers=prm_servers,
        stream=_rollout_stream(config.actor_rollout_ref.rollout, servers),
        reward_loop=loop.run(build_reward_loop(config, verifier, prm_servers), timeout_s=600),
        loop=loop,
        total_training_steps=total_training_steps,
        pad_token_id=_pad_token_id(config),
        num_devices=pools.num_devices(),
        sleeps=servers_sleep(config, device),
        scorers_sleep=scorers_sleep(config, device),
    )


def rollout_spec(config: PPOTrainerConfig, device: str) -> RolloutSpec:
    """Settings of a rollout engine.

    Args:
        config: The run's configuration.
        device: `cuda` or `cpu`.

    Returns:
        The spec.
    """
    rollout, data = config.actor_rollout_ref.rollout, config.data
    return RolloutSpec(
        model_path=config.actor_rollout_ref.model.path,
        enable_sleep_mode=servers_sleep(config, device),
        weight_sync=sync_backend(config, device),
        in_flight_update=rollout.in_flight_update,
        seed=config.trainer.seed,
        trust_remote_code=config.actor_rollout_ref.model.trust_remote_code,
        **engine_arguments(rollout, data.max_prompt_length + data.max_response_length, device),
    )


def sync_backend(config: PPOTrainerConfig, device: str) -> str:
    """Weight sync backend in force.

    Args:
        config: The run's configuration.
        device: `cuda` or `cpu`.

    Returns:
        `ipc` where servers share the policy's GPUs, `nccl` where they have their own; on a CPU `shared_memory`, or
        `gloo` where the servers have a pool and may be on another node. `hf` reads shared memory only.
    """
    rollout = config.actor_rollout_ref.rollout
    if rollout.weight_sync_backend != "auto":
        return rollout.weight_sync_backend
    if rollout.name != "vllm":
        return "shared_memory"
    if device == "cuda":
        return "nccl" if rollout.enable_resource_pool else "ipc"
    return "gloo" if rollout.enable_resource_pool else "shared_memory"


def _start_actor(config: PPOTrainerConfig, pools: ResourcePoolManager, stack: ExitStack) -> Any:
    spec = WorkerSpec(
        ActorRolloutRefWorker,
        {"config": config, "device": pools.device},
        env_vars=actor_environment(pools.device),
        name="policy",
    )
    group = RayWorkerGroup(
        pools.pool_of(Role.ACTOR_ROLLOUT_REF), spec, float(config.trainer.ray_wait_register_center_timeout)
    )
    stack.callback(group.shutdown)
    return group


def _init_actor(actor: Any, config: PPOTrainerConfig, total_training_steps: int) -> None:
    plan = BatchPlan.from_config(config)
    actor.init_model(total_training_steps * plan.optimizer_steps_per_training_step)


def _start_rollout_servers(
    config: PPOTrainerConfig, pools: ResourcePoolManager, actor: Any, stack: ExitStack
) -> tuple[list[list[Any]], list[Any]]:
    """Servers by node of their pool, and references that end when each has loaded its model."""
    pool, rollout = pools.pool_of(Role.ROLLOUT_SERVER), config.actor_rollout_ref.rollout
    is_split = rollout.enable_resource_pool
    # beside the policy a server is shown its ranks' devices; in a pool of its own Ray gives it some
    visible = [] if is_split else [devices for _, devices in actor.node_devices()]
    model, spec = config.actor_rollout_ref.model, rollout_spec(config, pools.device)
    by_node: list[list[Any]] = [[] for _ in range(pool.num_nodes)]
    for index, slot in enumerate(serving_slots(rollout, pool)):
        ranks = [] if is_split else [slot.node_index * pool.devices_per_node + device for device in slot.devices]
        devices = ",".join(visible[rank] for rank in ranks)
        server = server_class(RolloutServer, pool, slot, devices, len(slot.devices) if is_split else 0)
        own_spec = spec_of_server(spec, rollout, index)
        by_node[slot.node_index].append(server.remote(rollout.name, own_spec, model.tokenizer_path or model.path))
    servers = [server for node in by_node for server in node]
    stack.callback(close_servers, servers)
    return by_node, [server.start.remote() for server in servers]


def _start_prm_servers(
    config: PPOTrainerConfig, pools: ResourcePoolManager, devices: str, stack: ExitStack
) -> tuple[list[Any], list[Any]]:
    """PRM replicas on their pool, or on the policy's `devices`, and references that end when each has loaded the PRM.

    Without them a replica beside the policy would take the first GPU of the node, whoever has it.
    """
    if not config.reward_model.enable:
        return [], []
    pool = pools.pool_of(Role.PROCESS_REWARD)
    spec, backend = prm_spec(config, pools.device), config.reward_model.process_reward.backend
    slots = server_slots(pool, config.reward_model.tensor_model_parallel_size)
    if not config.reward_model.enable_resource_pool:
        slots = slots[:1]  # beside the policy one replica is enough: it shares those devices
    num_gpus = config.reward_model.tensor_model_parallel_size if config.reward_model.enable_resource_pool else 0
    servers = [server_class(ProcessRewardServer, pool, slot, devices, num_gpus).remote(backend, spec) for slot in slots]
    stack.callback(close_servers, servers)
    return servers, [server.start.remote() for server in servers]


def _rollout_stream(rollout: RolloutConfig, servers: Sequence[Any]) -> RolloutStream:
    submit = SubmitSettings(rollout.submit_longest_first, rollout.max_in_flight_groups)
    return RolloutStream(servers, rollout.timeout_s, submit=submit)


async def _start_verifier(config: PPOTrainerConfig) -> RuleVerifierPool:
    reward = config.reward_model
    pool = RuleVerifierPool(reward.num_verifier_workers, reward.verifier_timeout_s, custom_function(config))
    await pool.start()
    return pool


def _pad_token_id(config: PPOTrainerConfig) -> int:
    model = config.actor_rollout_ref.model
    tokenizer = load_tokenizer(model.tokenizer_path or model.path, model.trust_remote_code)
    return int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id)
