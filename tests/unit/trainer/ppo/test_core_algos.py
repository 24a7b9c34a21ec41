# SPDX-License-Identifier: Apache-2.0
"""The names verl's users import: they are the very objects of `verl.algorithms`."""

from __future__ import annotations

import torch

import verl.algorithms.registry as registry
from verl.algorithms.inputs import AdvantageInputs
from verl.trainer.ppo import core_algos


def test_every_name_resolves_to_the_inner_object():
    assert all(hasattr(core_algos, name) for name in core_algos.__all__)
    assert core_algos.register_adv_est is registry.register_adv_est


def test_a_user_reaches_an_estimator_and_a_loss_through_the_face():
    estimate = core_algos.get_adv_estimator_fn(core_algos.AdvantageEstimator.GRPO)
    advantages, _ = estimate(AdvantageInputs(torch.tensor([[1.0], [0.0]]), torch.ones(2, 1), torch.tensor([0, 0])))
    assert advantages[0].item() > 0 > advantages[1].item()
    assert core_algos.agg_loss(torch.tensor([[2.0, 4.0]]), torch.ones(1, 2), "token-mean").item() == 3.0
    assert core_algos.kl_penalty(torch.zeros(1), torch.zeros(1), "low_var_kl").item() == 0.0
