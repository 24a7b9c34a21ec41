# SPDX-License-Identifier: Apache-2.0
"""The clipped surrogate: every region by hand, all tokens against a loop, gradients against the formula."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from verl.algorithms.policy_losses import ClipSettings, PolicyLoss, clipped_surrogate

NAN = float("nan")


def loss_by_loop(log_prob, old, advantage, settings) -> tuple[float, bool, bool]:
    """One token, Python floats only: the loss, whether the outer bounds hold, whether the dual clip holds."""
    ratio = math.exp(min(max(log_prob - old, -20.0), 20.0))
    clipped = min(max(ratio, 1 - settings.clip_ratio_low), 1 + settings.clip_ratio_high)
    loss = max(-advantage * ratio, -advantage * clipped)
    is_outer = -advantage * clipped > -advantage * ratio
    if advantage < 0 and settings.clip_ratio_c is not None and loss > -advantage * settings.clip_ratio_c:
        return -advantage * settings.clip_ratio_c, is_outer, True
    return loss, is_outer, False


def surrogate(ratios, advantages, **settings) -> PolicyLoss:
    log_prob = torch.tensor([ratios]).log()
    ones = torch.ones_like(log_prob)
    return clipped_surrogate(
        log_prob, torch.zeros_like(ones), torch.tensor([advantages]), ones, ClipSettings(**settings)
    )


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "clipfrac", "lower"),
    [
        (1.0, 2.0, -2.0, 0, 0),  # the starting point
        (1.1, 1.0, -1.1, 0, 0),  # inside
        (1.5, 1.0, -1.28, 1, 0),  # a good token has gone up enough (clip-higher: 1.28)
        (0.5, 1.0, -0.5, 0, 0),  # a good token has gone down: pull it back
        (0.5, -1.0, 0.8, 1, 0),  # a bad token has gone down enough
        (1.5, -1.0, 1.5, 0, 0),  # a bad token has gone up: push it back
        (4.0, -2.0, 6.0, 0, 1),  # far up: the dual clip holds at 3 * 2
        (4.0, 0.0, 0.0, 0, 0),  # no advantage, no loss
    ],
)
def test_every_region_by_hand(ratio, advantage, expected, clipfrac, lower):
    result = surrogate([ratio], [advantage], clip_ratio_low=0.2, clip_ratio_high=0.28, clip_ratio_c=3.0)
    assert result.loss.item() == pytest.approx(expected, abs=1e-6)
    assert result.metrics["clipfrac"].item() == clipfrac and result.metrics["clipfrac_lower"].item() == lower


def test_without_dual_clip_a_bad_token_counts_in_full():
    assert surrogate([4.0], [-2.0], clip_ratio_c=None).loss.item() == pytest.approx(8.0)


@given(
    tokens=st.lists(
        st.tuples(st.floats(-30, 0, width=32), st.floats(-30, 0, width=32), st.floats(-3, 3, width=32), st.booleans()),
        min_size=1,
        max_size=12,
    ),
    c=st.sampled_from([None, 1.5, 3.0]),
)
def test_equals_the_loop_over_tokens(tokens, c):
    settings = ClipSettings(0.2, 0.28, c)
    columns = [torch.tensor([[float(token[position]) for token in tokens]]) for position in range(4)]
    result = clipped_surrogate(*columns, settings)
    by_loop = [loss_by_loop(*token[:3], settings) if token[3] else (0.0, False, False) for token in tokens]
    kept = [token for token in tokens if token[3]]
    assert result.loss[0].tolist() == pytest.approx([loss for loss, _, _ in by_loop], rel=1e-4, abs=1e-5)
    assert result.num_tokens.item() == len(kept)
    assert result.metric_sums["clipfrac_lower"].item() == sum(lower for _, _, lower in by_loop)
    assert result.metric_sums["ppo_kl"].item() == pytest.approx(sum(t[1] - t[0] for t in kept), rel=1e-4, abs=1e-4)


def test_the_gradient_is_that_of_the_formula():
    log_prob = torch.tensor([[1.1, 1.5, 0.5, 4.0, 1.5]]).log().requires_grad_()
    advantages = torch.tensor([[2.0, 1.0, -1.0, -1.0, -1.0]])
    mask = torch.tensor([[1, 1, 1, 1, 0]])
    clipped_surrogate(log_prob, torch.zeros(1, 5), advantages, mask, ClipSettings()).loss.sum().backward()
    # d(-A ratio)/d log_prob = -A ratio inside; 0 where a bound holds or the mask is 0.
    assert log_prob.grad.tolist() == [pytest.approx([-2.2, 0.0, 0.0, 0.0, 0.0], abs=1e-6)]


def test_padding_may_hold_anything_and_gets_no_gradient():
    log_prob = torch.tensor([[0.0, NAN, -float("inf")]], requires_grad=True)
    result = clipped_surrogate(
        log_prob,
        torch.tensor([[0.0, 1.0, NAN]]),
        torch.tensor([[1.0, NAN, 1.0]]),
        torch.tensor([[1, 0, 0]]),
        ClipSettings(),
    )
    result.loss.sum().backward()
    assert result.loss.tolist() == [[-1.0, 0.0, 0.0]] and log_prob.grad.tolist() == [[-1.0, 0.0, 0.0]]
    assert all(math.isfinite(value.item()) for value in result.metrics.values())


def test_a_diverged_token_gives_a_finite_loss():
    zeros, ones = torch.zeros(1, 1), torch.ones(1, 1)
    result = clipped_surrogate(zeros + 500.0, zeros, -ones, ones, ClipSettings(clip_ratio_c=None))
    assert result.loss.item() == pytest.approx(math.exp(20.0), rel=1e-5)


def test_an_empty_mask_gives_zero_metrics():
    zeros = torch.zeros(2, 3)
    result = clipped_surrogate(zeros, zeros, zeros + 1, zeros, ClipSettings())
    assert result.loss.abs().sum() == 0 and result.metrics["clipfrac"].item() == 0 and result.num_tokens == 0


def test_bfloat16_log_probs_are_compared_in_float32():
    log_prob = torch.tensor([[-1.0]], dtype=torch.bfloat16)
    result = clipped_surrogate(log_prob, torch.tensor([[-1.001]]), torch.ones(1, 1), torch.ones(1, 1), ClipSettings())
    assert result.loss.dtype == torch.float32 and result.loss.item() == pytest.approx(-math.exp(0.001), abs=1e-6)


@pytest.mark.parametrize(
    "bounds",
    [{"clip_ratio_low": -0.1}, {"clip_ratio_low": 1.5}, {"clip_ratio_high": -0.1}, {"clip_ratio_c": 1.0}],
)
def test_impossible_bounds_are_refused(bounds):
    with pytest.raises(ValueError, match="clip"):
        ClipSettings(**bounds)
