# SPDX-License-Identifier: Apache-2.0
"""Importance weights between sampler and trainer: loops over tokens, known values, and what must not matter."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from verl.algorithms.aggregation import LOSS_AGG_MODES, agg_loss
from verl.algorithms.policy_losses import ClipSettings, clipped_surrogate
from verl.algorithms.rollout_correction import CorrectionSettings, importance_weights, mismatch_sums

SETTINGS = {
    "none": CorrectionSettings(),
    "token": CorrectionSettings(level="token", cap=2.0),
    "sequence": CorrectionSettings(level="sequence", cap=2.0),
    "mask_both": CorrectionSettings(mask_low=0.5, mask_high=2.0),
    "mask_low": CorrectionSettings(mask_low=0.8),
    "mask_high": CorrectionSettings(mask_high=1.1),
    "icepop": CorrectionSettings(level="token", cap=5.0, mask_low=0.5, mask_high=5.0),
    "sequence_masked": CorrectionSettings(level="sequence", cap=1.5, mask_low=0.5, mask_high=2.0),
}


def by_loop(old, rollout, mask, settings) -> tuple[list[list[float]], list[list[bool]], int]:
    """Weights, kept tokens, and how many of these were capped."""
    weights, keeps, num_capped = [], [], 0
    for old_row, rollout_row, mask_row in zip(old, rollout, mask, strict=True):
        ratios = [math.exp(o - r) if m else None for o, r, m in zip(old_row, rollout_row, mask_row, strict=True)]
        whole = math.prod(ratio for ratio in ratios if ratio is not None)
        weight_row, keep_row = [], []
        for ratio in ratios:
            kept = ratio is not None
            kept = kept and not (settings.mask_low is not None and ratio < settings.mask_low)
            kept = kept and not (settings.mask_high is not None and ratio > settings.mask_high)
            raw = {"none": 1.0, "token": ratio, "sequence": whole}[settings.level]
            capped = kept and settings.level != "none" and raw > settings.cap
            num_capped += capped
            keep_row.append(kept)
            weight_row.append(0.0 if not kept else settings.cap if capped else raw)
        weights.append(weight_row)
        keeps.append(keep_row)
    return weights, keeps, num_capped


@st.composite
def pairs(draw):
    """Log-probs whose ratios keep clear of every bound in `SETTINGS`, so that rounding decides nothing."""
    num_rows, width = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    old = st.lists(st.floats(-4, 0, width=32), min_size=width, max_size=width)
    shift = st.lists(st.sampled_from([-1.7, -0.31, -0.05, 0.0, 0.07, 0.53, 1.3, 1.9]), min_size=width, max_size=width)
    keep = st.lists(st.booleans(), min_size=width, max_size=width)
    rows = [(draw(old), draw(shift), draw(keep)) for _ in range(num_rows)]
    olds = torch.tensor([row[0] for row in rows])
    return olds, olds - torch.tensor([row[1] for row in rows]), torch.tensor([row[2] for row in rows])


@given(pairs(), st.sampled_from(sorted(SETTINGS)))
def test_every_mode_equals_the_loop(pair, name):
    old, rollout, mask = pair
    weights, keep_mask, metrics = importance_weights(old, rollout, mask, SETTINGS[name])
    expected, keeps, num_capped = by_loop(old.tolist(), rollout.tolist(), mask.tolist(), SETTINGS[name])
    assert keep_mask.tolist() == keeps
    assert weights.tolist() == [pytest.approx(row, rel=1e-4) for row in expected]
    num_tokens = int(mask.sum())
    if not num_tokens:
        assert metrics == {}
        return
    kept = [w for row, keep in zip(expected, keeps, strict=True) for w, k in zip(row, keep, strict=True) if k]
    assert metrics["rollout/masked/share"] == pytest.approx(1 - len(kept) / num_tokens)
    assert metrics["rollout/truncated/share"] == pytest.approx(num_capped / num_tokens)
    assert metrics["rollout/is_weight/mean"] == pytest.approx(sum(kept) / len(kept) if kept else 0.0, rel=1e-4)
    assert metrics["rollout/is_weight/max"] == pytest.approx(max(kept, default=0.0), rel=1e-4)
    assert metrics["rollout/is_weight/min"] == pytest.approx(min(kept, default=0.0), rel=1e-4)
    ess = sum(kept) ** 2 / sum(w * w for w in kept) / num_tokens if kept else 0.0
    assert metrics["rollout/is_weight/ess/share"] == pytest.approx(ess, rel=1e-4)


def test_icepop_is_the_ratio_inside_the_bounds_and_zero_outside():
    ratios = torch.tensor([[0.4, 0.6, 1.0, 4.9, 5.1]])
    weights, keep_mask, _ = importance_weights(ratios.log(), torch.zeros(1, 5), torch.ones(1, 5), SETTINGS["icepop"])
    assert keep_mask.tolist() == [[False, True, True, True, False]]
    assert weights[0].tolist() == pytest.approx([0.0, 0.6, 1.0, 4.9, 0.0])


def test_a_sequence_has_one_weight_and_it_is_the_product():
    ratios = torch.tensor([[1.5, 0.5, 1.2], [3.0, 2.0, 1.0]])
    weights, _, metrics = importance_weights(
        ratios.log(), torch.zeros(2, 3), torch.tensor([[1, 1, 1], [1, 1, 0]]), SETTINGS["sequence"]
    )
    assert weights[0].tolist() == pytest.approx([0.9, 0.9, 0.9])
    assert weights[1].tolist() == [2.0, 2.0, 0.0]
    assert metrics["rollout/truncated/share"] == pytest.approx(2 / 5)


@pytest.mark.parametrize("name", sorted(SETTINGS))
@pytest.mark.parametrize("mode", LOSS_AGG_MODES)
def test_equal_log_probs_leave_the_loss_and_its_gradient_as_they_are_bit_for_bit(name, mode):
    generator = torch.Generator().manual_seed(1)
    old = -torch.rand(4, 7, generator=generator) * 5
    mask = torch.arange(7)[None] < torch.tensor([[7], [3], [1], [0]])
    advantages = torch.randn(4, 7, generator=generator)
    noise = 0.3 * torch.randn(4, 7, generator=generator)
    weights, keep_mask, _ = importance_weights(old, old.clone(), mask, SETTINGS[name])
    assert keep_mask.equal(mask)
    assert weights[mask].eq(1.0).all()
    results = []
    for factor in (None, weights):
        present = (old + noise).requires_grad_()
        loss = clipped_surrogate(present, old, advantages, mask, ClipSettings()).loss
        total = agg_loss(loss if factor is None else loss * factor, mask, mode)
        total.backward()
        results.append((total.detach(), present.grad))
    assert results[0][0].equal(results[1][0])
    assert results[0][1].equal(results[1][1])


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_padding_does_not_matter_and_weights_have_no_gradient(name):
    old = torch.tensor([[-1.0, -2.0, float("nan")], [-0.5, float("inf"), float("-inf")]], requires_grad=True)
    rollout = torch.tensor([[-1.2, -1.7, float("nan")], [-0.9, 0.0, float("nan")]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    weights, _, metrics = importance_weights(old, rollout, mask, SETTINGS[name])
    clean = [torch.where(mask.bool(), column.detach(), torch.zeros(2, 3)) for column in (old, rollout)]
    assert weights.equal(importance_weights(clean[0], clean[1], mask, SETTINGS[name])[0])
    assert not weights.requires_grad
    assert all(math.isfinite(value) for value in metrics.values())


def test_a_masked_token_has_no_gradient_and_the_denominator_stays():
    old, rollout = torch.tensor([[0.0, -3.0]]), torch.tensor([[0.0, -1.0]])
    mask = torch.ones(1, 2)
    weights, _, _ = importance_weights(old, rollout, mask, SETTINGS["mask_both"])
    present = old.clone().requires_grad_()
    loss = clipped_surrogate(present, old, torch.ones(1, 2), mask, ClipSettings()).loss * weights
    agg_loss(loss, mask).backward()
    assert present.grad.tolist() == [[-0.5, 0.0]]


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_hopeless_ratios_stay_finite(level):
    settings = CorrectionSettings(level=level, cap=3.0)
    old, rollout = torch.tensor([[0.0, -500.0]]), torch.tensor([[-500.0, 0.0]])
    weights, _, _ = importance_weights(old, rollout, torch.ones(1, 2), settings)
    assert weights.isfinite().all()
    assert weights.max() <= 3.0


def test_a_mask_leaves_out_tokens_without_a_number():
    old = torch.tensor([[float("nan"), -1.0]])
    weights, keep_mask, _ = importance_weights(old, torch.zeros(1, 2) - 1, torch.ones(1, 2), SETTINGS["mask_both"])
    assert weights.tolist() == [[0.0, 1.0]]
    assert keep_mask.tolist() == [[False, True]]


def test_weights_make_a_sum_over_the_sampler_a_sum_over_the_trainer():
    """Why there are weights at all: with every token as often as the sampler says, sum_q f w / n = sum_p f."""
    sampler, trainer = [0.5, 0.25, 0.25], [0.25, 0.25, 0.5]
    tokens, values = [0, 0, 1, 2], {0: 3.0, 1: -1.0, 2: 5.0}
    rollout = torch.tensor([[math.log(sampler[token]) for token in tokens]])
    old = torch.tensor([[math.log(trainer[token]) for token in tokens]])
    weights, _, _ = importance_weights(old, rollout, torch.ones(1, 4), replace(SETTINGS["token"], cap=10.0))
    estimate = sum(w * values[token] for w, token in zip(weights[0].tolist(), tokens, strict=True)) / 4
    assert estimate == pytest.approx(sum(p * values[token] for token, p in enumerate(trainer)))


def test_mismatch_of_known_distributions():
    sampler, trainer = [0.5, 0.25, 0.25], [0.25, 0.25, 0.5]
    tokens = [0, 0, 1, 2]
    rollout = torch.tensor([[math.log(sampler[token]) for token in tokens] + [7.0]])
    old = torch.tensor([[math.log(trainer[token]) for token in tokens] + [float("nan")]])
    sums = mismatch_sums(old, rollout, torch.tensor([[1, 1, 1, 1, 0]]))
    kl = sum(q * math.log(q / p) for q, p in zip(sampler, trainer, strict=True))
    chi2 = sum(p * p / q for q, p in zip(sampler, trainer, strict=True)) - 1
    assert sums["k3"].item() / 4 == pytest.approx(kl, rel=1e-5)
    assert sums["chi2"].item() / 4 == pytest.approx(chi2, rel=1e-5)
    assert sums["ratio"].item() / 4 == pytest.approx(1.0)
    assert sums["log_prob_diff"].item() == pytest.approx(3 * math.log(2), rel=1e-5)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"level": "word"}, "level must be one of"),
        ({"cap": 0.0}, "cap must be above 0"),
        ({"mask_low": 2.0, "mask_high": 2.0}, "mask_low must be below mask_high"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        CorrectionSettings(**wrong)


def test_settings_know_whether_they_do_anything():
    assert not CorrectionSettings().is_on
    assert CorrectionSettings(level="token").is_on
    assert CorrectionSettings(mask_high=2.0).is_on
    assert not CorrectionSettings(level="sequence").has_mask
