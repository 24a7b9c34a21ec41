# SPDX-License-Identifier: Apache-2.0
"""Layout of the pools. Nothing is claimed here: Ray is never started."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import ray

from tests.helpers.configs import build
from verl.config import ActorRolloutRefConfig, PPOTrainerConfig, RolloutConfig
from verl.config.reward import RewardModelConfig
from verl.config.trainer import TrainerConfig
from verl.single_controller import ResourcePool
from verl.trainer.ppo.placement import (
    ResourcePoolManager,
    Role,
    ServerSlot,
    actor_environment,
    connect_ray,
    scorers_sleep,
    server_slots,
    shares_policy_gpus,
)
from verl.utils.errors import UserError

SPLIT = ("actor_rollout_ref.rollout.enable_resource_pool=True", "actor_rollout_ref.rollout.n_gpus_per_node=2")
PRM = ("reward_model.enable=True", "reward_model.model.path=org/prm", "reward_model.gpu_memory_utilization=0.3")
OWN_POOL = (*PRM, "reward_model.enable_resource_pool=True", "reward_model.n_gpus_per_node=2")


def pools(reward: RewardModelConfig, device: str = "cpu") -> ResourcePoolManager:
    trainer = TrainerConfig(nnodes=2, n_gpus_per_node=6)
    was_running = ray.is_initialized()
    manager = ResourcePoolManager(PPOTrainerConfig(trainer=trainer, reward_model=reward), device)
    assert ray.is_initialized() == was_running  # the layout needs no cluster
    return manager


def test_rollout_servers_share_the_policy_devices() -> None:
    manager = pools(RewardModelConfig(enable=False))
    policy = manager.pool_of(Role.ACTOR_ROLLOUT_REF)
    assert (policy.num_nodes, policy.devices_per_node, policy.world_size, policy.device) == (2, 6, 12, "cpu")
    assert manager.pool_of(Role.ROLLOUT_SERVER) is policy
    assert manager.num_devices() == 12
    with pytest.raises(KeyError):
        manager.pool_of(Role.PROCESS_REWARD)


def test_the_prm_shares_the_policy_devices_unless_it_has_a_pool() -> None:
    manager = pools(RewardModelConfig(enable=True, nnodes=1, n_gpus_per_node=2), device="cuda")
    assert manager.pool_of(Role.PROCESS_REWARD) is manager.pool_of(Role.ACTOR_ROLLOUT_REF)
    assert manager.num_devices() == 12


def test_the_prm_pool_adds_its_devices() -> None:
    reward = RewardModelConfig(enable=True, enable_resource_pool=True, nnodes=2, n_gpus_per_node=2)
    manager = pools(reward, device="cuda")
    prm = manager.pool_of(Role.PROCESS_REWARD)
    assert (prm.num_nodes, prm.devices_per_node, prm.device) == (2, 2, "cuda")
    assert prm is not manager.pool_of(Role.ACTOR_ROLLOUT_REF)
    assert manager.num_devices() == 12 + 4


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_rollout_pool_adds_its_devices(device: str) -> None:
    rollout = RolloutConfig(enable_resource_pool=True, nnodes=3, n_gpus_per_node=4)
    config = PPOTrainerConfig(
        actor_rollout_ref=ActorRolloutRefConfig(rollout=rollout),
        trainer=TrainerConfig(nnodes=2, n_gpus_per_node=6),
        reward_model=RewardModelConfig(enable=True),
    )
    manager = ResourcePoolManager(config, device)
    policy, servers = manager.pool_of(Role.ACTOR_ROLLOUT_REF), manager.pool_of(Role.ROLLOUT_SERVER)
    assert (policy.num_nodes, policy.devices_per_node) == (2, 6)
    assert (servers.num_nodes, servers.devices_per_node, servers.device) == (3, 4, device)
    assert manager.pool_of(Role.PROCESS_REWARD) is policy
    assert manager.num_devices() == 12 + 12


def test_a_prm_pool_without_a_prm_claims_nothing() -> None:
    assert pools(RewardModelConfig(enable=False, enable_resource_pool=True, n_gpus_per_node=2)).num_devices() == 12


@pytest.mark.parametrize("tensor_parallel_size", [1, 2, 4])
def test_slots_cover_every_device_once_and_never_span_nodes(tensor_parallel_size: int) -> None:
    slots = server_slots(ResourcePool("p", num_nodes=3, devices_per_node=4, device="cuda"), tensor_parallel_size)
    assert all(len(slot.devices) == tensor_parallel_size for slot in slots)
    covered = [(slot.node_index, device) for slot in slots for device in slot.devices]
    assert covered == [(node, device) for node in range(3) for device in range(4)]


def test_slots_by_hand() -> None:
    pool = ResourcePool("p", num_nodes=2, devices_per_node=2, device="cpu")
    assert server_slots(pool, 2) == [ServerSlot(0, (0, 1)), ServerSlot(1, (0, 1))]


def test_one_thread_per_process_on_a_cpu_only() -> None:
    assert actor_environment("cpu")["OMP_NUM_THREADS"] == "1"
    assert actor_environment("cpu")["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    assert "OMP_NUM_THREADS" not in actor_environment("cuda")
    assert all(isinstance(value, str) for device in ("cpu", "cuda") for value in actor_environment(device).values())


def test_a_mistyped_argument_of_ray_is_refused_before_ray_starts() -> None:
    was_running = ray.is_initialized()
    with ExitStack() as stack, pytest.raises(UserError, match=r"ray_kwargs\.ray_init=\['num_cpu'\]: ray\.init has no"):
        connect_ray({"num_cpu": 4, "_temp_dir": "/nowhere"}, 1, "cpu", stack)
    assert ray.is_initialized() == was_running


def test_engines_without_a_pool_share_the_policys_gpus() -> None:
    assert shares_policy_gpus(build(), "cuda") == (False, True)
    assert shares_policy_gpus(build(*PRM, *SPLIT), "cuda") == (True, False)
    assert shares_policy_gpus(build(*OWN_POOL, *SPLIT), "cuda") == (False, False)
    assert shares_policy_gpus(build(*PRM), "cpu") == (False, False)


def test_a_prm_sleeps_while_the_policy_trains_on_its_gpus() -> None:
    stale = (*SPLIT, "trainer.max_staleness=1", "algorithm.rollout_correction.rollout_is=token")
    assert scorers_sleep(build(*PRM), "cuda") and scorers_sleep(build(*PRM, *SPLIT), "cuda")
    assert not scorers_sleep(build(*PRM), "cpu")
    assert not scorers_sleep(build(*PRM, "reward_model.free_cache_engine=False"), "cuda")
    assert not scorers_sleep(build(*OWN_POOL), "cuda")
    assert not scorers_sleep(build(*PRM, *stale), "cuda")  # responses of batches ahead are scored all the time
