# SPDX-License-Identifier: Apache-2.0
"""The name tables: own entries, unknown names, names taken twice."""

from __future__ import annotations

import pytest
import torch

from verl.algorithms.inputs import AdvantageInputs
from verl.algorithms.policy_losses import ClipSettings, get_policy_loss_fn
from verl.algorithms.registry import (
    AdvantageEstimator,
    NameTable,
    adv_estimator_columns,
    get_adv_estimator_fn,
    register_adv_est,
    register_policy_loss,
)
from verl.utils.errors import UserError


def test_every_shipped_name_is_registered_and_says_what_it_reads():
    for name in AdvantageEstimator:
        assert get_adv_estimator_fn(name) is get_adv_estimator_fn(str(name))
        assert set(adv_estimator_columns(name)) <= set(AdvantageInputs.__dataclass_fields__)
    assert adv_estimator_columns("grpo") == ("token_level_rewards",)
    assert "token_level_rewards" not in adv_estimator_columns("grpo_ps")


def test_a_users_estimator_is_found_by_its_name():
    @register_adv_est("test_only_raw", columns=("rule_scores",))
    def raw(inputs: AdvantageInputs) -> tuple[torch.Tensor, torch.Tensor]:
        return inputs.token_level_rewards, inputs.token_level_rewards

    assert get_adv_estimator_fn("test_only_raw") is raw and adv_estimator_columns("test_only_raw") == ("rule_scores",)


def test_an_unknown_name_lists_the_known_ones_and_the_nearest():
    with pytest.raises(
        UserError, match=r"algorithm.adv_estimator='grpo_sp': .*grpo, .*grpo_ps.*Did you mean 'grpo_ps'"
    ):
        get_adv_estimator_fn("grpo_sp")
    with pytest.raises(UserError, match="loss_mode='zzz': registered names are .*vanilla.*register your own"):
        get_policy_loss_fn("zzz")


def test_a_name_cannot_be_taken_twice():
    table: NameTable[int] = NameTable("some.key")
    table.add("a", 1)
    table.add("a", 1)
    with pytest.raises(ValueError, match="'a' is already registered"):
        table.add("a", 2)


def test_a_users_policy_loss_is_found_by_its_name():
    @register_policy_loss("test_only_loss")
    def loss(log_prob, old_log_prob, advantages, response_mask, settings):
        return None

    assert get_policy_loss_fn("test_only_loss") is loss
    assert get_policy_loss_fn("vanilla")(*[torch.zeros(1, 1)] * 3, torch.ones(1, 1), ClipSettings()).loss.item() == 0
