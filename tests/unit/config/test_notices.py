# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from tests.helpers.configs import WITH_PRM, build

PROCESS = "reward_model.process_reward"
AHEAD = ["trainer.device=cpu", "algorithm.rollout_correction.rollout_is=token"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["actor_rollout_ref.actor.strategy=fsdp"], "there is no FSDP1, fsdp2 is used"),
        (["actor_rollout_ref.actor.megatron.tensor_model_parallel_size=2"], "megatron: no effect with strategy=fsdp2"),
        (
            ["actor_rollout_ref.actor.strategy=megatron", "actor_rollout_ref.actor.fsdp_config.param_offload=True"],
            "actor_rollout_ref.actor.fsdp_config: no effect with strategy=megatron",
        ),
        ([f"{PROCESS}.beta=0.5"], "no effect, reward_model.enable=False"),
        ([*WITH_PRM, "algorithm.adv_estimator=grpo_ps"], "alpha and aggregation: not read by adv_estimator=grpo_ps"),
        ([*WITH_PRM, f"{PROCESS}.mode=legacy", f"{PROCESS}.beta=0.5"], "beta: no effect with mode=legacy"),
        ([*WITH_PRM, f"{PROCESS}.beta=0"], "its scores do not count"),
        (["custom_reward_function.reward_kwargs.a=1"], "no effect without custom_reward_function.path"),
        (
            ["actor_rollout_ref.actor.use_kl_loss=True", "algorithm.use_kl_in_reward=True"],
            "in the loss and in the reward",
        ),
        (
            ["algorithm.adv_estimator=rloo", "algorithm.norm_adv_by_std_in_grpo=False"],
            "norm_adv_by_std_in_grpo=False: no effect with adv_estimator=rloo",
        ),
        (["actor_rollout_ref.rollout.in_flight_update=keep"], "no effect with trainer.max_staleness=0"),
        ([*AHEAD, "trainer.max_staleness=2"], "every weight sync waits for all batches ahead"),
        (["algorithm.gdpo.batch_norm=False"], "algorithm.gdpo: no effect with adv_estimator=grpo"),
        (["algorithm.group_filter.keep=2"], "algorithm.group_filter: no effect with name=none"),
        ([*WITH_PRM, "algorithm.adv_estimator=grpo_minform"], "PURE's scores are signed"),
        (["algorithm.rollout_correction.rollout_is_threshold=3"], "no effect without rollout_is"),
        (
            [
                "algorithm.rollout_correction.rollout_is=token",
                "algorithm.rollout_correction.bypass_old_log_probs=True",
            ],
            "actor.clip_ratio* have no effect",
        ),
        (["trainer.save_freq=0"], "no checkpoint is written"),
    ],
)
def test_said_once(overrides: list[str], said: str) -> None:
    assert sum(said in notice for notice in build(*overrides).notices()) == 1


def test_a_filter_makes_use_of_scores_that_have_no_weight() -> None:
    rows = (*WITH_PRM, f"{PROCESS}.beta=0", "algorithm.group_filter.name=prof", "actor_rollout_ref.rollout.n=4")
    assert build(*rows).notices() == []


def test_an_ordinary_run_has_nothing_to_say() -> None:
    assert build(*WITH_PRM, "actor_rollout_ref.actor.use_kl_loss=True").notices() == []


def test_a_rollout_that_gains_by_running_further_ahead_is_not_called_useless() -> None:
    further = (*AHEAD, "trainer.max_staleness=2")
    assert build(*AHEAD, "trainer.max_staleness=1").notices() == []
    assert build(*further, "actor_rollout_ref.rollout.in_flight_update=keep").notices() == []
    assert build(*further, "actor_rollout_ref.rollout.max_in_flight_groups=8").notices() == []
