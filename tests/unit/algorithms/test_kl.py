# SPDX-License-Identifier: Apache-2.0
"""KL estimates against hand-worked numbers, exact expectations and their gradients; the two controllers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from verl.algorithms.kl import KL_FORMS, AdaptiveKLController, FixedKLController, kl_in_reward, kl_penalty
from verl.utils.errors import UserError

SPELLINGS = {"k1": ("k1", "kl"), "abs": ("abs",), "k2": ("k2", "mse"), "k3": ("k3", "low_var_kl")}


def estimate_by_loop(form: str, logprob: float, ref: float) -> float:
    d = logprob - ref
    if form == "k1":
        return d
    if form == "abs":
        return abs(d)
    if form == "k2":
        return d * d / 2
    cut = min(max(d, -20.0), 20.0)
    return min(math.exp(-cut) + cut - 1, 10.0)


def gradient_of(form: str, difference: float) -> float:
    logprob = torch.tensor([difference], requires_grad=True)
    kl_penalty(logprob, torch.zeros(1), form).sum().backward()
    return logprob.grad.item()


@pytest.mark.parametrize(("form", "expected"), [("k1", 0.5), ("abs", 0.5), ("k2", 0.125), ("k3", math.exp(-0.5) - 0.5)])
def test_hand_worked_values(form, expected):
    for spelling in SPELLINGS[form]:
        assert kl_penalty(torch.tensor([-1.0]), torch.tensor([-1.5]), spelling).item() == pytest.approx(expected)


@given(st.floats(-60, 0, width=32), st.floats(-60, 0, width=32), st.sampled_from(sorted(SPELLINGS)))
def test_equals_the_loop(logprob, ref, form):
    for spelling in SPELLINGS[form]:
        for suffix in ("", "+"):
            found = kl_penalty(torch.tensor([logprob]), torch.tensor([ref]), spelling + suffix).item()
            assert found == pytest.approx(estimate_by_loop(form, logprob, ref), rel=1e-4, abs=1e-5)


def test_all_listed_forms_work_and_others_are_refused():
    assert set(KL_FORMS) == {name + suffix for names in SPELLINGS.values() for name in names for suffix in ("", "+")}
    with pytest.raises(UserError, match="'full'.*low_var_kl"):
        kl_penalty(torch.zeros(1), torch.zeros(1), "full")


def test_k1_and_k3_are_unbiased_over_a_whole_distribution():
    policy, reference = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.2, 0.6])
    exact = sum(p * math.log(p / q) for p, q in zip(policy.tolist(), reference.tolist(), strict=True))
    for form in ("k1", "k3"):
        assert (policy * kl_penalty(policy.log(), reference.log(), form)).sum().item() == pytest.approx(exact, abs=1e-6)


@pytest.mark.parametrize("form", ["k2", "k1+", "k3+", "abs+"])
def test_k2_and_the_plus_forms_have_the_gradient_of_the_exact_kl(form):
    logits = torch.tensor([0.3, -0.4, 1.1], requires_grad=True)
    reference = torch.tensor([0.2, 0.2, 0.6]).log()
    log_probs = logits.log_softmax(-1)
    (exact,) = torch.autograd.grad((log_probs.exp() * (log_probs - reference)).sum(), logits, retain_graph=True)
    sampled = (log_probs.exp().detach() * kl_penalty(log_probs, reference, form)).sum()  # expectation over samples
    assert torch.allclose(torch.autograd.grad(sampled, logits)[0], exact, atol=1e-6)


@pytest.mark.parametrize(
    ("form", "difference", "expected"),
    [("k1", 0.5, 1.0), ("abs", -0.5, -1.0), ("k2", 0.5, 0.5), ("k3", 0.5, 1 - math.exp(-0.5)), ("k3+", -3.0, -3.0)],
)
def test_gradient_of_each_form(form, difference, expected):
    assert gradient_of(form, difference) == pytest.approx(expected, abs=1e-6)


def test_beyond_its_ceiling_k3_is_ten_and_pushes_no_more():
    assert kl_penalty(torch.tensor([-9.0]), torch.zeros(1), "k3").item() == 10.0
    assert gradient_of("k3", -9.0) == 0.0
    assert kl_penalty(torch.tensor([-1e6]), torch.zeros(1), "k3").item() == 10.0
    assert kl_penalty(torch.tensor([1e6]), torch.zeros(1), "k3").item() == 10.0


def test_small_differences_keep_their_precision():
    found = kl_penalty(torch.tensor([1e-3], dtype=torch.float32), torch.zeros(1), "k3").item()
    assert found == pytest.approx(math.expm1(-1e-3) + 1e-3, rel=1e-3) and found >= 0


def test_no_gradient_flows_into_the_reference():
    ref = torch.zeros(1, requires_grad=True)
    assert not kl_penalty(torch.ones(1), ref, "k3").requires_grad


def test_kl_in_reward_by_hand():
    scores, kl = torch.tensor([[0.0, 1.0, 9.0], [0.0, -1.0, 0.0]]), torch.tensor([[0.2, 0.4, 7.0], [0.0, -0.2, 0.4]])
    rewards, mean_kl = kl_in_reward(scores, kl, torch.tensor([[1, 1, 0], [1, 1, 1]]), 0.5)
    assert rewards.tolist() == [pytest.approx([-0.1, 0.8, 0.0]), pytest.approx([0.0, -0.9, -0.2])]
    assert mean_kl.item() == pytest.approx(0.8 / 5)


def test_kl_outside_the_mask_may_be_anything():
    rewards, mean_kl = kl_in_reward(torch.zeros(1, 2), torch.tensor([[1.0, float("nan")]]), torch.tensor([[1, 0]]), 0.1)
    assert rewards.tolist() == [pytest.approx([-0.1, 0.0])] and mean_kl.item() == 1.0


def test_the_fixed_controller_stays():
    controller = FixedKLController(0.1)
    controller.update(current_kl=100.0, n_steps=1000)
    assert controller.value == 0.1


@pytest.mark.parametrize(
    ("current_kl", "expected"),
    [(0.1, 1.0), (0.11, 1.0 + 0.1 * 64 / 1000), (9.0, 1.0 + 0.2 * 64 / 1000), (0.0, 1.0 - 0.2 * 64 / 1000)],
)
def test_the_adaptive_controller_steers_towards_its_target(current_kl, expected):
    controller = AdaptiveKLController(1.0, target_kl=0.1, horizon=1000)
    controller.update(current_kl, n_steps=64)
    assert controller.value == pytest.approx(expected)


def test_a_controller_without_target_or_horizon_is_refused():
    for wrong in ({"target_kl": 0.0, "horizon": 10}, {"target_kl": 0.1, "horizon": 0}):
        with pytest.raises(ValueError, match="above 0"):
            AdaptiveKLController(0.1, **wrong)
