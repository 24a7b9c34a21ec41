# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from tests.helpers.configs import WITH_PRM, build, fault
from verl.algorithms.registry import AdvantageEstimator, adv_estimator_columns
from verl.config.names import ADV_ESTIMATORS, GROUP_ESTIMATORS, PROCESS_ESTIMATORS

PROCESS = "reward_model.process_reward"
PS = "algorithm.adv_estimator=grpo_ps"
FUNCTION = "custom_reward_function.path=mine.py"
PROF = "algorithm.group_filter.name=prof"
NEITHER = ("algorithm.grpo_delta.clip=False", "algorithm.grpo_delta.delta=False")
SHARED = ("reward_model.enable=True", "reward_model.model.path=org/prm")


@pytest.mark.parametrize(
    ("refused", "said", "accepted"),
    [
        # estimator
        (["algorithm.adv_estimator=grop"], "Did you mean 'grpo'?", []),
        (
            ["actor_rollout_ref.rollout.n=1"],
            "with one response every advantage is 0",
            ["actor_rollout_ref.rollout.n=2"],
        ),
        ([PS], "reads step scores, but no PRM is on", [PS, *WITH_PRM]),
        ([PS, *WITH_PRM, f"{PROCESS}.mode=scalar"], "Set mode=step", [*WITH_PRM, f"{PROCESS}.mode=scalar"]),
        ([PS, *WITH_PRM, f"{PROCESS}.mode=legacy"], "Set mode=step", [*WITH_PRM, f"{PROCESS}.mode=legacy"]),
        (
            [PS, *WITH_PRM, "algorithm.use_kl_in_reward=True"],
            "the penalty would be lost",
            [*WITH_PRM, "algorithm.use_kl_in_reward=True"],
        ),
        (
            [PS, *WITH_PRM, f"{PROCESS}.gate=correct_only"],
            "gate='correct_only': grpo_ps reads raw step scores, so a gate would have no effect",
            [*WITH_PRM, f"{PROCESS}.gate=correct_only"],
        ),
        (
            ["algorithm.grpo_minform.temperature=0"],
            "must be above 0",
            ["algorithm.grpo_minform.temperature=0.01"],
        ),
        (
            ["algorithm.adv_estimator=grpo_delta", *WITH_PRM, *NEITHER],
            "the plain sum of scores is left",
            ["algorithm.adv_estimator=grpo_delta", *WITH_PRM, NEITHER[0]],
        ),
        (
            ["algorithm.adv_estimator=rloo", "actor_rollout_ref.rollout.n=1"],
            "rloo compares the responses of one prompt",
            ["algorithm.adv_estimator=remax", "actor_rollout_ref.rollout.n=1"],
        ),
        # filter
        ([PROF], "algorithm.group_filter.name='prof': reads step scores, but no PRM is on", [PROF, *WITH_PRM]),
        (
            [PROF, *WITH_PRM, "actor_rollout_ref.rollout.n=2"],
            "1 kept of 2 responses per prompt",
            [PROF, *WITH_PRM, "actor_rollout_ref.rollout.n=3"],
        ),
        (
            [PROF, *WITH_PRM, "algorithm.group_filter.keep=4", "actor_rollout_ref.rollout.n=4"],
            "4 kept of 4 responses per prompt",
            [PROF, *WITH_PRM, "algorithm.group_filter.keep=3", "actor_rollout_ref.rollout.n=4"],
        ),
        # names
        (["reward_model.reward_manager=navie"], "dapo | batch | prime | process. Did you mean 'naive'?", []),
        (["actor_rollout_ref.actor.loss_agg_mode=token_mean"], "Did you mean 'token-mean'?", []),
        (["actor_rollout_ref.actor.kl_loss_type=k4"], "allowed: kl | k1 | abs | mse | k2 | low_var_kl | k3", []),
        ([f"{PROCESS}.aggregation=avg"], "allowed: mean | min | last | prod", []),
        # blend
        (
            [*WITH_PRM, f"{PROCESS}.aggregation=prod", f"{PROCESS}.score_space=signed"],
            "prod multiplies probabilities",
            [*WITH_PRM, f"{PROCESS}.aggregation=prod", f"{PROCESS}.score_space=prob"],
        ),
        ([f"{PROCESS}.rule_range=[1,-1]"], "[wrong, right]", [f"{PROCESS}.rule_range=[0,1]"]),
        (
            [f"{PROCESS}.min_step_chars=20", f"{PROCESS}.max_step_chars=20"],
            "must be larger than min_step_chars=20",
            [f"{PROCESS}.min_step_chars=20", f"{PROCESS}.max_step_chars=21"],
        ),
        ([f"{PROCESS}.step_separator=''"], "must not be empty", [f"{PROCESS}.step_separator='##'"]),
        ([f"{PROCESS}.beta=1.5"], "must be at least 0 and at most 1", [f"{PROCESS}.beta=1"]),
        (
            [f"{PROCESS}.beta_schedule=[[10,0.5],[0,1]]"],
            "training steps that rise",
            [f"{PROCESS}.beta_schedule=[[0,0.5],[10,1]]"],
        ),
        ([f"{PROCESS}.beta_schedule=[[0,2]]"], "beta between 0 and 1", [f"{PROCESS}.beta_schedule=[[0,0]]"]),
        # devices
        (
            ["reward_model.enable=True", "trainer.device=cpu"],
            "reward_model.model.path='': is required",
            ["reward_model.enable=True", "trainer.device=cpu", "reward_model.model.path=org/prm"],
        ),
        (
            [*SHARED, "reward_model.enable_resource_pool=True"],
            "the PRM's pool needs devices",
            [*SHARED, "reward_model.enable_resource_pool=True", "reward_model.n_gpus_per_node=1"],
        ),
        (
            [*WITH_PRM, "reward_model.tensor_model_parallel_size=4"],
            "is larger than reward_model.n_gpus_per_node=2",
            [*WITH_PRM, "reward_model.tensor_model_parallel_size=2"],
        ),
        (
            [*WITH_PRM, "reward_model.tensor_model_parallel_size=2", "reward_model.process_reward.backend=hf"],
            "tensor_model_parallel_size=2: backend hf has one device per replica",
            [*WITH_PRM, "reward_model.process_reward.backend=hf"],
        ),
        (
            [*SHARED],
            "both together take 1.30 of the memory",
            [*SHARED, "reward_model.gpu_memory_utilization=0.4"],
        ),
        (
            ["reward_model.enable_resource_pool=True"],
            "reserves devices, but no PRM is on",
            [*WITH_PRM, "reward_model.enable_resource_pool=True"],
        ),
        # managers
        (
            ["reward_model.reward_manager=batch"],
            "custom_reward_function.path is not set",
            ["reward_model.reward_manager=batch", FUNCTION],
        ),
        (
            ["reward_model.reward_manager=process"],
            "neither a PRM nor a function of your own",
            ["reward_model.reward_manager=process", FUNCTION],
        ),
        ([PS, FUNCTION], "reads step scores, but no PRM is on", [PS, FUNCTION, "reward_model.reward_manager=process"]),
        (
            [
                "reward_model.reward_manager=prime",
                *(f"reward_model.overlong_buffer.{v}" for v in ("enable=True", "len=9")),
            ],
            "reward_model.reward_manager='prime': has no overlong penalty",
            ["reward_model.reward_manager=process", *WITH_PRM],
        ),
        # alarms
        (["reward_model.alarms.empty=1"], "a share is never above 1", ["reward_model.alarms.empty=null"]),
        (
            ["reward_model.alarms.steps_growth=1.0"],
            "reward_model.alarms.steps_growth=1.0: must be above 1",
            ["reward_model.alarms.steps_growth=1.5"],
        ),
        (["reward_model.alarms.auc=1.5"], "at most 1", ["reward_model.alarms.auc=0.0"]),
        (["reward_model.alarms.stop_on=[repeats]"], "allowed: repeated_steps | empty", []),
        (
            ["reward_model.alarms.stop_on=[auc,empty]", "reward_model.alarms.auc=null"],
            "auc is off",
            ["reward_model.alarms.stop_on=[auc,empty]"],
        ),
        # overlong penalty
        (
            ["reward_model.overlong_buffer.enable=True", "reward_model.overlong_buffer.len=128"],
            "reward_model.reward_manager='naive': has no overlong penalty",
            [
                "reward_model.overlong_buffer.enable=True",
                "reward_model.overlong_buffer.len=128",
                "reward_model.reward_manager=dapo",
            ],
        ),
        (
            ["reward_model.overlong_buffer.enable=True", "reward_model.reward_manager=dapo"],
            "reward_model.overlong_buffer.len=4096: must not exceed data.max_response_length=512",
            ["reward_model.reward_manager=dapo"],
        ),
    ],
)
def test_checks(refused: list[str], said: str, accepted: list[str]) -> None:
    message = fault(*refused)
    assert said in message
    assert len(message.splitlines()) == 1
    build(*accepted)


def test_processes_on_a_cpu_share_no_gpu_memory() -> None:
    build(*SHARED, "trainer.device=cpu")


@pytest.mark.parametrize("name", PROCESS_ESTIMATORS)
def test_what_reads_step_scores_refuses_whatever_it_would_not_see(name: str) -> None:
    chosen = f"algorithm.adv_estimator={name}"
    build(chosen, *WITH_PRM)
    for lost in ("algorithm.use_kl_in_reward=True", f"{PROCESS}.gate=outcome_sign", f"{PROCESS}.mode=scalar"):
        assert name in fault(chosen, *WITH_PRM, lost)
    assert "no PRM is on" in fault(chosen)


@pytest.mark.parametrize("name", sorted(set(ADV_ESTIMATORS) - set(PROCESS_ESTIMATORS)))
def test_what_reads_token_rewards_sees_gates_and_the_kl(name: str) -> None:
    build(f"algorithm.adv_estimator={name}", *WITH_PRM, f"{PROCESS}.gate=outcome_sign")
    build(f"algorithm.adv_estimator={name}", "algorithm.use_kl_in_reward=True")


def test_names_agree_with_the_registry() -> None:
    assert sorted(ADV_ESTIMATORS) == sorted(AdvantageEstimator)
    reads_rewards = {name for name in ADV_ESTIMATORS if "token_level_rewards" in adv_estimator_columns(name)}
    assert set(PROCESS_ESTIMATORS) == set(ADV_ESTIMATORS) - reads_rewards
    assert set(ADV_ESTIMATORS) - set(GROUP_ESTIMATORS) == {"remax", "reinforce_plus_plus"}
