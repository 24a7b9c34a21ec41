# SPDX-License-Identifier: Apache-2.0
"""The update's loop; its numbers stand against a plain loop in `fsdp/test_engine.py`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from tests.helpers.engine_cases import CASES, engine_spec, one_rank_group, training_batch, update_spec
from tests.helpers.tiny_models import VOCAB_SIZE, save_tiny_model
from verl.algorithms.aggregation import LossDenominator
from verl.algorithms.rollout_correction import CorrectionSettings
from verl.engines.base import HeadOutputs
from verl.engines.fsdp.engine import FSDPEngine
from verl.engines.policy_update import (
    PolicyBatch,
    PolicyLossShare,
    PolicyUpdateSpec,
    mini_batch_rows,
    update_policy,
)
from verl.utils.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy")
    save_tiny_model(folder)
    return folder


@pytest.fixture
def engine(folder: Path) -> Iterator[FSDPEngine]:
    with one_rank_group():
        yield FSDPEngine(engine_spec(str(folder), CASES["plain"]))


@pytest.fixture
def spec() -> PolicyUpdateSpec:
    return update_spec(CASES["plain"], 8)


def test_mini_batches_hold_every_row_once_per_epoch_in_a_repeatable_order() -> None:
    assert list(mini_batch_rows(5, 2, None, 0)) == [[0, 1], [2, 3], [4]]
    first, second = (list(mini_batch_rows(20, 4, 7, epoch)) for epoch in (0, 1))
    assert sorted(sum(first, [])) == sorted(sum(second, [])) == list(range(20))
    assert first != second
    assert first == list(mini_batch_rows(20, 4, 7, 0))


def test_each_mini_batch_of_each_epoch_is_one_optimizer_step(engine: FSDPEngine, spec: PolicyUpdateSpec) -> None:
    metrics = update_policy(engine, training_batch(0), replace(spec, mini_batch_size=3, epochs=2, shuffle_seed=1))
    assert metrics["actor/optimizer_steps"] == 6.0
    assert metrics["actor/num_tokens"] == 2.0 * float(training_batch(0).sequences.lengths().sum())


def test_a_mini_batch_without_any_token_makes_no_step(engine: FSDPEngine, spec: PolicyUpdateSpec) -> None:
    batch = training_batch(0)
    before = {name: weight.clone() for name, weight in engine.named_weights()}
    empty = replace(batch, response_mask=torch.zeros_like(batch.response_mask))
    metrics = update_policy(engine, empty, spec)
    assert metrics["actor/empty_mini_batches"] == 1.0
    assert metrics["actor/optimizer_steps"] == 0.0
    assert all(before[name].equal(weight) for name, weight in engine.named_weights())


def test_masked_out_sequences_count_nowhere(folder: Path, spec: PolicyUpdateSpec) -> None:
    batch = training_batch(0)
    kept = [0, 2, 3, 5, 7]
    masked = batch.response_mask.clone()
    masked[[1, 4, 6]] = 0
    results = []
    with one_rank_group():
        for share in (
            replace(batch, response_mask=masked),
            replace(batch, **{name: column[kept] for name, column in vars(batch).items() if column is not None}),
        ):
            engine = FSDPEngine(engine_spec(str(folder), CASES["plain"]))
            metrics = update_policy(engine, share, spec)
            results.append([metrics[f"actor/{name}"] for name in ("loss", "grad_norm", "kl_loss", "pg_clipfrac")])
    assert results[0] == pytest.approx(results[1], rel=1e-5)


def test_on_policy_loss_terms_have_their_known_values(engine: FSDPEngine, spec: PolicyUpdateSpec) -> None:
    """With equal old, reference and present log-probs: ratio 1, no KL, nothing clipped, loss = -mean advantage."""
    batch = training_batch(0)
    clean = replace(
        batch,
        old_log_probs=_present(batch),
        ref_log_prob=_present(batch),
        advantages=torch.full_like(batch.advantages, 0.5),
    )
    metrics = update_policy(engine, clean, replace(spec, entropy_coeff=0.0))
    assert metrics["actor/pg_loss"] == pytest.approx(-0.5, abs=1e-5)
    assert metrics["actor/kl_loss"] == pytest.approx(0.0, abs=1e-5)
    assert metrics["actor/ppo_kl"] == pytest.approx(0.0, abs=1e-5)
    assert metrics["actor/pg_clipfrac"] == 0.0
    assert "actor/entropy" not in metrics


def _present(batch: object) -> torch.Tensor:
    # The helper draws old log-probs around the model's own with a known noise; without noise they are the model's.
    from_noise = torch.Generator().manual_seed(100)
    return batch.old_log_probs - 0.2 * torch.randn(batch.old_log_probs.shape, generator=from_noise)


def test_one_optimizer_step_needs_no_old_log_probs(folder: Path, spec: PolicyUpdateSpec) -> None:
    """The log-probs of the step's own forward pass are the old ones: as with a column of them."""
    results, weights, batch = [], [], training_batch(0)
    sampler = _present(batch) + 0.3
    whole = replace(spec, mini_batch_size=len(batch), epochs=1, entropy_coeff=0.0)
    with one_rank_group():
        for old in (_present(batch), None):
            engine = FSDPEngine(engine_spec(str(folder), CASES["plain"]))
            results.append(update_policy(engine, replace(batch, old_log_probs=old, rollout_log_probs=sampler), whole))
            weights.append(dict(engine.named_weights()))
    with_column, without = results
    for name in ("actor/loss", "actor/grad_norm", "actor/kl_loss", "actor/ppo_kl"):
        assert without[name] == pytest.approx(with_column[name], rel=1e-4, abs=1e-6), name
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=1e-4, atol=1e-4)
    assert without["actor/ppo_kl"] == 0.0
    assert without["actor/rollout_log_prob_diff"] == pytest.approx(0.3, abs=1e-4)
    assert without["actor/rollout_log_prob_diff_max"] == pytest.approx(0.3, abs=1e-4)
    assert 0.0 < without["actor/policy_entropy"] < math.log(VOCAB_SIZE)
    assert "actor/entropy" not in without and "actor/policy_entropy" not in with_column


@pytest.mark.parametrize("more", [{"epochs": 2}, {"mini_batch_size": 4}])
def test_several_optimizer_steps_need_old_log_probs(
    engine: FSDPEngine, spec: PolicyUpdateSpec, more: dict[str, int]
) -> None:
    batch = replace(training_batch(0), old_log_probs=None)
    with pytest.raises(ValueError, match="one optimizer step"):
        update_policy(engine, batch, replace(spec, **({"mini_batch_size": len(batch), "epochs": 1} | more)))


def test_a_budget_below_the_longest_sequence_is_a_user_error(engine: FSDPEngine, spec: PolicyUpdateSpec) -> None:
    with pytest.raises(UserError, match="ppo_max_token_len_per_gpu=12"):
        update_policy(engine, training_batch(0), replace(spec, micro=replace(spec.micro, max_tokens=12)))


def test_the_kl_loss_needs_its_column(engine: FSDPEngine, spec: PolicyUpdateSpec) -> None:
    with pytest.raises(ValueError, match="ref_log_prob"):
        update_policy(engine, replace(training_batch(0), ref_log_prob=None), spec)


@dataclass
class OneRow:
    """A micro-batch of one row whose tokens are all response tokens."""

    rows: torch.Tensor

    def scatter(self, values: torch.Tensor) -> torch.Tensor:
        return values.reshape(1, -1)


def shares(spec: PolicyUpdateSpec, **columns: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Metrics of a loss over one row of four tokens, and the gradient of the log-probs."""
    present = torch.tensor([-1.0, -2.0, -0.5, -3.0], requires_grad=True)
    tokens = torch.zeros(1, 4, dtype=torch.int64)
    values = {
        "old_log_probs": torch.tensor([[-1.1, -2.0, -1.5, -1.0]]),
        "advantages": torch.tensor([[1.0, -1.0, 2.0, 1.0]]),
        "ref_log_prob": torch.zeros(1, 4),
    } | columns
    batch = PolicyBatch(tokens, tokens + 1, tokens, tokens + 1, **values)
    loss, metrics = PolicyLossShare(batch, spec, LossDenominator(4, 1, 4))(
        OneRow(torch.tensor([0])), HeadOutputs(present, None)
    )
    loss.backward()
    return metrics, present.grad


def test_weights_of_one_change_nothing_bit_for_bit(spec: PolicyUpdateSpec) -> None:
    plain = replace(spec, entropy_coeff=0.0)
    expected, gradient = shares(plain)
    metrics, weighted = shares(plain, rollout_is_weights=torch.ones(1, 4))
    assert all(metrics[name].equal(expected[name]) for name in expected)
    assert weighted.equal(gradient)


def test_weights_multiply_the_policy_loss_of_their_token_and_nothing_else(spec: PolicyUpdateSpec) -> None:
    plain = replace(spec, entropy_coeff=0.0, kl_loss_coef=None)
    weights = torch.tensor([[0.5, 0.0, 2.0, 1.0]])
    expected, gradient = shares(plain)
    metrics, weighted = shares(plain, rollout_is_weights=weights)
    assert weighted.tolist() == pytest.approx((gradient * weights[0]).tolist())
    assert metrics["ppo_kl"].equal(expected["ppo_kl"])
    with_kl = replace(spec, entropy_coeff=0.0)
    assert shares(with_kl, rollout_is_weights=weights)[0]["kl_loss"].equal(shares(with_kl)[0]["kl_loss"])


def test_a_bypass_without_weights_is_the_clipped_surrogate_on_the_sampler(spec: PolicyUpdateSpec) -> None:
    plain = replace(spec, entropy_coeff=0.0)
    expected, gradient = shares(plain)
    metrics, bypassed = shares(replace(plain, live_correction=CorrectionSettings()))
    assert bypassed.equal(gradient)
    assert metrics["pg_loss"].equal(expected["pg_loss"])
    differences = [0.1, 0.0, 1.0, -2.0]
    assert metrics["rollout_log_prob_diff"].item() == pytest.approx(sum(map(abs, differences)) / 4)
    assert metrics["rollout_k3"].item() == pytest.approx(sum(math.expm1(d) - d for d in differences) / 4, rel=1e-5)
    assert metrics["rollout_masked"].item() == 0.0


@pytest.mark.parametrize(
    ("settings", "factors"),
    [
        (CorrectionSettings(level="token", cap=2.0), [math.exp(0.1), 1.0, 2.0, math.exp(-2.0)]),
        (CorrectionSettings(level="sequence", cap=2.0), [math.exp(-0.9)] * 4),
        (CorrectionSettings(level="token", cap=5.0, mask_low=0.5), [math.exp(0.1), 1.0, math.e, 0.0]),
    ],
)
def test_a_bypass_with_weights_is_a_truncated_policy_gradient(
    spec: PolicyUpdateSpec, settings: CorrectionSettings, factors: list[float]
) -> None:
    """-A * w per token over the four tokens: whatever the clip range, which the ratios leave on both sides."""
    _, gradient = shares(replace(spec, entropy_coeff=0.0, kl_loss_coef=None, live_correction=settings))
    advantages = [1.0, -1.0, 2.0, 1.0]
    expected = [-a * w / 4 for a, w in zip(advantages, factors, strict=True)]
    assert gradient.tolist() == pytest.approx(expected, rel=1e-5)


def test_a_bypass_with_a_mask_leaves_tokens_out(spec: PolicyUpdateSpec) -> None:
    plain = replace(spec, entropy_coeff=0.0, kl_loss_coef=None)
    _, gradient = shares(plain)
    metrics, masked = shares(replace(plain, live_correction=CorrectionSettings(mask_low=0.5, mask_high=2.0)))
    assert masked.tolist() == [gradient[0].item(), gradient[1].item(), 0.0, 0.0]
    assert metrics["rollout_masked"].item() == pytest.approx(0.5)


def test_weights_reach_an_engine(engine: FSDPEngine, spec: PolicyUpdateSpec) -> None:
    batch = training_batch(0)
    weightless = replace(batch, rollout_is_weights=torch.zeros_like(batch.advantages))
    metrics = update_policy(engine, weightless, replace(spec, entropy_coeff=0.0, kl_loss_coef=None))
    assert metrics["actor/pg_loss"] == 0.0
    assert metrics["actor/grad_norm"] == 0.0
