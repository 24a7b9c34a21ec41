# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest

from verl.config.names import REWARD_MANAGERS
from verl.rewards.manager import ManagerSettings, OverlongBuffer, get_reward_manager_cls, register
from verl.rewards.types import RewardInput, RuleVerdict
from verl.utils.errors import UserError

NAMES = ("naive", "dapo", "batch", "prime", "process")
CUSTOM = ManagerSettings(is_custom=True)
RIGHT, WRONG = RuleVerdict(1.0, True), RuleVerdict(-1.0, False)


def response(num_tokens=10):
    return RewardInput("u", 0, "math_dapo", [], "x", np.zeros(num_tokens, np.int64), num_tokens, False, "1")


@pytest.mark.parametrize("name", ["naive", "dapo", "prime", "process"])
def test_the_outcome_of_shipped_scorers_is_the_range(name):
    manager = get_reward_manager_cls(name)(ManagerSettings(rule_range=(-0.25, 2.0)))
    assert manager.reward(response(), RIGHT).rule_score == 2.0
    reward = manager.reward(response(), WRONG)
    assert (reward.rule_score, reward.overlong_penalty, reward.is_missing) == (-0.25, 0.0, False)


@pytest.mark.parametrize("status", ["timeout", "error"])
def test_an_answer_that_cannot_be_judged_is_not_right(status):
    manager = get_reward_manager_cls("naive")(ManagerSettings())
    reward = manager.reward(response(), RuleVerdict(0.0, False, status=status, detail="why"))
    assert (reward.rule_score, reward.is_missing) == (-1.0, False)


def test_a_custom_number_is_kept_and_a_failed_one_is_missing_not_zero():
    manager = get_reward_manager_cls("dapo")(ManagerSettings(is_custom=True))
    assert manager.reward(response(), RuleVerdict(0.3, True)).rule_score == 0.3
    reward = manager.reward(response(), RuleVerdict(0.0, False, status="timeout"))
    assert math.isnan(reward.rule_score) and reward.is_missing


@pytest.mark.parametrize(
    ("num_tokens", "penalty"), [(0, 0), (80, 0), (81, -0.1), (85, -0.5), (90, -1.0), (100, -2.0), (130, -2.0)]
)
def test_overlong_punishment_of_dapo_eq_13(num_tokens, penalty):
    # Eq. 13 by hand with L_max = 100, L_cache = 20, factor 2.
    expected = 0.0
    if 80 < num_tokens <= 100:
        expected = (80 - num_tokens) / 20 * 2
    elif num_tokens > 100:
        expected = -2.0
    assert penalty == pytest.approx(expected)
    manager = get_reward_manager_cls("dapo")(ManagerSettings(overlong=OverlongBuffer(100, 20, 2.0)))
    reward = manager.reward(response(num_tokens), RIGHT)
    assert reward.overlong_penalty == pytest.approx(expected)
    assert reward.rule_score == 1.0


@pytest.mark.parametrize("arguments", [(100, 0), (100, 101), (100, 20, -1.0), (100, 20, float("nan"))])
def test_impossible_buffers_are_refused(arguments):
    with pytest.raises(UserError, match="overlong_buffer"):
        OverlongBuffer(*arguments)


@pytest.mark.parametrize("rule_range", [(1.0, -1.0), (0.0, 0.0), (0.0, float("inf")), (float("nan"), 1.0), (1.0,)])
def test_a_range_that_does_not_rise_is_refused(rule_range):
    with pytest.raises(UserError, match="rule_range"):
        ManagerSettings(rule_range=rule_range)


@pytest.mark.parametrize("name", ["naive", "batch", "prime", "process"])
def test_managers_refuse_a_punishment_they_would_not_give(name):
    with pytest.raises(UserError, match=f"reward_manager='{name}'.*reward_manager=dapo"):
        get_reward_manager_cls(name)(ManagerSettings(is_custom=True, overlong=OverlongBuffer(100, 20)))


def test_prime_counts_what_cannot_be_judged_as_wrong():
    manager = get_reward_manager_cls("prime")(ManagerSettings(rule_range=(-0.5, 2.0), is_custom=True))
    for status in ("timeout", "error"):
        reward = manager.reward(response(), RuleVerdict(0.0, False, status=status))
        assert (reward.rule_score, reward.is_missing) == (-0.5, False)
    assert manager.reward(response(), RuleVerdict(0.3, True)).rule_score == 0.3


def test_batch_needs_a_function_and_says_so():
    with pytest.raises(UserError, match="reward_manager='batch'.*custom_reward_function.path"):
        get_reward_manager_cls("batch")(ManagerSettings())


def test_only_process_reads_step_scores_and_only_of_a_function():
    readers = [name for name in NAMES if get_reward_manager_cls(name)(CUSTOM).reads_step_scores]
    assert readers == ["process"]
    assert not get_reward_manager_cls("process")(ManagerSettings()).reads_step_scores
    assert [name for name in NAMES if get_reward_manager_cls(name).judges_batch] == ["batch"]


def test_the_configuration_offers_exactly_the_managers_there_are():
    assert {get_reward_manager_cls(name).__name__ for name in REWARD_MANAGERS} == {
        "NaiveRewardManager",
        "DAPORewardManager",
        "BatchRewardManager",
        "PrimeRewardManager",
        "ProcessRewardManager",
    }


def test_an_unknown_manager_is_refused_and_a_name_taken_stays():
    with pytest.raises(UserError, match="known are batch, dapo, naive, prime, process"):
        get_reward_manager_cls("bathc")
    naive = get_reward_manager_cls("naive")
    with pytest.raises(ValueError, match="registered already"):
        register("naive")(get_reward_manager_cls("dapo"))
    assert get_reward_manager_cls("naive") is naive
