# SPDX-License-Identifier: Apache-2.0
"""Loss aggregation: hand-worked numbers, a loop over tokens, and the same loss and gradients however a batch is cut."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from verl.algorithms.aggregation import LOSS_AGG_MODES, LossDenominator, agg_loss, count_loss_terms
from verl.utils.errors import UserError

LOSS = torch.tensor([[1.0, 2.0, 3.0, 99.0], [4.0, 99.0, 99.0, 99.0], [99.0, 99.0, 99.0, 99.0]])
MASK = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]])


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("token-mean", 10 / 4),
        ("seq-mean-token-sum", (6 + 4) / 2),
        ("seq-mean-token-mean", (2 + 4) / 2),
        ("seq-mean-token-sum-norm", (6 + 4) / 2 / 8),
    ],
)
def test_hand_worked_numbers(mode, expected):
    # The third row has no token: padding, counted nowhere.
    counts = count_loss_terms(MASK, max_response_len=8)
    assert counts == LossDenominator(4, 2, 8)
    assert agg_loss(LOSS, MASK, mode, counts).item() == pytest.approx(expected)


def aggregate_by_loop(loss, mask, mode, max_response_len) -> float:
    sequences = [
        [value for value, kept in zip(values, keeps, strict=True) if kept]
        for values, keeps in zip(loss, mask, strict=True)
    ]
    sequences = [sequence for sequence in sequences if sequence]
    if not sequences:
        return 0.0
    if mode == "token-mean":
        return sum(map(sum, sequences)) / sum(map(len, sequences))
    per_sequence = {
        "seq-mean-token-sum": lambda s: sum(s),
        "seq-mean-token-mean": lambda s: sum(s) / len(s),
        "seq-mean-token-sum-norm": lambda s: sum(s) / max_response_len,
    }[mode]
    return sum(map(per_sequence, sequences)) / len(sequences)


@st.composite
def matrices(draw):
    num_rows, width = draw(st.integers(1, 8)), draw(st.integers(1, 5))
    rows = st.lists(st.floats(-5, 5, width=32), min_size=width, max_size=width)
    keeps = st.lists(st.booleans(), min_size=width, max_size=width)
    loss = [draw(rows) for _ in range(num_rows)]
    mask = [draw(keeps) for _ in range(num_rows)]
    borders = sorted(draw(st.sets(st.integers(1, max(1, num_rows - 1)), max_size=3)))
    return loss, mask, [0, *[b for b in borders if b < num_rows], num_rows]


@given(matrices(), st.sampled_from(LOSS_AGG_MODES))
def test_equals_the_loop(matrix, mode):
    loss, mask, _ = matrix
    expected = aggregate_by_loop(loss, mask, mode, len(loss[0]))
    assert agg_loss(torch.tensor(loss), torch.tensor(mask), mode).item() == pytest.approx(expected, abs=1e-5)


@given(matrices(), st.sampled_from(LOSS_AGG_MODES))
def test_any_cut_into_micro_batches_and_ranks_gives_the_same_loss_and_gradients(matrix, mode):
    loss, mask, borders = matrix
    mask = torch.tensor(mask)
    whole = torch.tensor(loss, requires_grad=True)
    counts = count_loss_terms(mask, max_response_len=16)
    expected = agg_loss(whole, mask, mode, counts)
    expected.backward()
    cut = torch.tensor(loss, requires_grad=True)
    total = 0.0
    for start, end in zip(borders[:-1], borders[1:], strict=True):  # gradients accumulate, as micro-batches do
        longest = max(1, int(mask[start:end].sum(-1).max()))
        order = mask[start:end].int().argsort(dim=-1, descending=True, stable=True)[:, :longest]
        part, part_mask = cut[start:end].gather(1, order), mask[start:end].gather(1, order)  # its own, smaller width
        share = agg_loss(part, part_mask, mode, counts)
        share.backward()
        total += share.item()
    assert total == pytest.approx(expected.item(), abs=1e-5)
    assert torch.allclose(cut.grad, whole.grad, atol=1e-6)


def test_counts_of_parts_add_up():
    parts = [count_loss_terms(MASK[:1]), count_loss_terms(MASK[1:])]
    assert sum(part.num_tokens for part in parts) == 4 and sum(part.num_sequences for part in parts) == 2


@pytest.mark.parametrize("mode", LOSS_AGG_MODES)
def test_an_empty_mask_gives_zero_and_padding_no_gradient(mode):
    loss = torch.tensor([[1.0, float("nan")], [float("nan"), float("inf")]], requires_grad=True)
    assert agg_loss(loss, torch.zeros(2, 2), mode).item() == 0.0
    agg_loss(loss, torch.tensor([[1, 0], [0, 0]]), mode, LossDenominator(1, 1, 1)).backward()
    assert loss.grad.tolist() == [[1.0, 0.0], [0.0, 0.0]]


def test_an_unknown_mode_is_refused():
    with pytest.raises(UserError, match="loss_agg_mode='mean'.*token-mean"):
        agg_loss(LOSS, MASK, "mean")
