# SPDX-License-Identifier: Apache-2.0
"""Pool, weight sync and asynchrony of rollout servers: refused with key and mend, the nearest neighbour accepted."""

from __future__ import annotations

import pytest

from tests.helpers.configs import WITH_PRM, build, fault

ROLLOUT = "actor_rollout_ref.rollout"
SPLIT = (f"{ROLLOUT}.enable_resource_pool=True", f"{ROLLOUT}.n_gpus_per_node=4")
CORRECTED = "algorithm.rollout_correction.rollout_is=token"
HF = f"{ROLLOUT}.name=hf"


@pytest.mark.parametrize(
    ("refused", "said", "accepted"),
    [
        # pool
        (SPLIT[:1], f"{ROLLOUT}.n_gpus_per_node=0: the rollout servers' pool needs devices", SPLIT),
        (SPLIT[1:], f"{ROLLOUT}.n_gpus_per_node=4: describes the rollout servers' own pool", SPLIT),
        ([f"{ROLLOUT}.nnodes=2"], f"Set {ROLLOUT}.enable_resource_pool=True", [*SPLIT, f"{ROLLOUT}.nnodes=2"]),
        (
            [*SPLIT, f"{ROLLOUT}.tensor_model_parallel_size=8"],  # the policy has 8 devices per node
            f"tensor_model_parallel_size=8: is larger than {ROLLOUT}.n_gpus_per_node=4",
            [*SPLIT, f"{ROLLOUT}.tensor_model_parallel_size=4"],
        ),
        (
            [*SPLIT, f"{ROLLOUT}.tensor_model_parallel_size=3"],
            f"must divide {ROLLOUT}.n_gpus_per_node=4",
            [*SPLIT, f"{ROLLOUT}.tensor_model_parallel_size=2"],
        ),
        # asynchrony
        (
            [*SPLIT, "trainer.max_staleness=1"],
            "trainer.max_staleness=1: trains on responses of an earlier policy, which needs an importance correction",
            [*SPLIT, "trainer.max_staleness=1", CORRECTED],
        ),
        (
            [*SPLIT, "trainer.max_staleness=1", "algorithm.rollout_correction.mask_low=0.5"],
            f"Set {CORRECTED}",
            [*SPLIT, "trainer.max_staleness=1", "algorithm.rollout_correction.bypass_old_log_probs=True"],
        ),
        (
            ["trainer.max_staleness=2", CORRECTED],
            f"rollout servers and policy take turns on the same GPUs. Set {ROLLOUT}.enable_resource_pool=True",
            ["trainer.max_staleness=2", CORRECTED, "trainer.device=cpu"],
        ),
        (["trainer.max_staleness=-1"], "at least 0", ["trainer.max_staleness=0"]),
        (
            [HF, "trainer.max_staleness=1", CORRECTED, "trainer.device=cpu", f"{ROLLOUT}.in_flight_update=keep"],
            f"{ROLLOUT}.in_flight_update='keep': hf cannot freeze a response; vllm and sglang can",
            ["trainer.max_staleness=1", CORRECTED, "trainer.device=cpu", f"{ROLLOUT}.in_flight_update=keep"],
        ),
    ],
)
def test_checks(refused: list[str], said: str, accepted: list[str]) -> None:
    message = fault(*refused)
    assert said in message
    assert len(message.splitlines()) == 1
    build(*accepted)


def test_a_prm_beside_the_policy_shares_no_memory_with_servers_that_have_a_pool() -> None:
    shared = [*WITH_PRM[:2], "reward_model.gpu_memory_utilization=0.8"]
    assert "both together take 1.30 of the memory" in fault(*shared)
    build(*shared, *SPLIT)
