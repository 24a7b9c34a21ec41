# SPDX-License-Identifier: Apache-2.0
"""Chunked log-probs and entropy against the plain computation, forward and backward."""

from __future__ import annotations

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
import torch

from verl.algorithms.log_probs import ChunkedHead, VocabSlice, log_probs_from_hidden, log_probs_from_logits

NUM_TOKENS, WIDTH, VOCABULARY = 13, 8, 37


def problem(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(NUM_TOKENS, WIDTH, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(VOCABULARY, (NUM_TOKENS,), generator=generator)


def plain(hidden, weight, labels, temperature):
    """The whole matrix at once."""
    distribution = torch.log_softmax((hidden @ weight.T).float() / temperature, dim=-1)
    chosen = distribution[torch.arange(len(labels)), labels]
    return chosen, -(distribution.exp() * distribution).sum(-1)


def by_loop(logits: list[float], label: int) -> tuple[float, float]:
    total = sum(math.exp(value) for value in logits)
    probabilities = [math.exp(value) / total for value in logits]
    return math.log(probabilities[label]), -sum(p * math.log(p) for p in probabilities)


def test_hand_worked_row():
    logits, labels = torch.tensor([[0.0, 1.0, 2.0], [3.0, 3.0, 3.0]]), torch.tensor([2, 0])
    chosen, entropy = log_probs_from_logits(logits, labels, with_entropy=True)
    for row in range(2):
        expected = by_loop(logits[row].tolist(), int(labels[row]))
        assert (chosen[row].item(), entropy[row].item()) == pytest.approx(expected, abs=1e-6)
    assert entropy[1].item() == pytest.approx(math.log(3), abs=1e-6)
    assert log_probs_from_logits(logits, labels)[1] is None


@pytest.mark.parametrize("chunk_tokens", [1, 4, NUM_TOKENS, 100])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_equals_the_plain_computation_forward_and_backward(chunk_tokens, temperature):
    hidden, weight, labels = problem()
    mixing = torch.linspace(-1, 1, NUM_TOKENS)
    chosen, entropy = plain(hidden, weight, labels, temperature)
    expected_grads = torch.autograd.grad((mixing * chosen).sum() + 0.3 * (mixing * entropy).sum(), (hidden, weight))
    found, found_entropy = log_probs_from_hidden(hidden, weight, labels, temperature, True, chunk_tokens)
    grads = torch.autograd.grad((mixing * found).sum() + 0.3 * (mixing * found_entropy).sum(), (hidden, weight))
    assert torch.allclose(found, chosen, atol=1e-5) and torch.allclose(found_entropy, entropy, atol=1e-5)
    for one, two in zip(grads, expected_grads, strict=True):
        assert torch.allclose(one, two, atol=1e-5)


def test_bfloat16_inputs_give_float32_results_and_bfloat16_gradients():
    hidden, weight, labels = problem(torch.bfloat16)
    expected, expected_entropy = plain(hidden, weight, labels, 0.7)
    found, entropy = log_probs_from_hidden(hidden, weight, labels, 0.7, True, chunk_tokens=5)
    assert found.dtype == entropy.dtype == torch.float32
    assert torch.allclose(found, expected, atol=1e-5) and torch.allclose(entropy, expected_entropy, atol=1e-5)
    found.sum().backward()
    whole = torch.autograd.grad(expected.sum(), (hidden, weight))
    for one, two in zip((hidden.grad, weight.grad), whole, strict=True):
        assert one.dtype == torch.bfloat16
        torch.testing.assert_close(one, two, atol=0.02, rtol=2**-7)  # one rounding to bfloat16, not one per chunk


def test_sums_over_many_chunks_lose_nothing_in_bfloat16():
    """200 equal tokens, one a chunk: summed in bfloat16 the gradient would stand still when a part is 1/256 of it."""
    hidden = torch.ones(200, 1, dtype=torch.bfloat16)
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    labels = torch.zeros(200, dtype=torch.int64)
    log_probs_from_hidden(hidden, weight, labels, chunk_tokens=1)[0].sum().backward()
    assert weight.grad.flatten().tolist() == [100.0, -100.0]  # p = 1/2 for every token
    log_probs_from_hidden(3 * hidden, weight, labels, chunk_tokens=1)[0].sum().backward()
    assert weight.grad.flatten().tolist() == [400.0, -400.0]


class Meeting:
    """Adds up, or takes the largest of, what several threads bring."""

    def __init__(self, size: int) -> None:
        self._barrier, self._brought = threading.Barrier(size), {}

    def combine(self, rank: int, values: torch.Tensor, op: str) -> torch.Tensor:
        self._brought[rank] = values
        self._barrier.wait(10)
        stacked = torch.stack([self._brought[rank] for rank in sorted(self._brought)])
        self._barrier.wait(10)
        return stacked.sum(0) if op == "sum" else stacked.amax(0)


@dataclass(frozen=True)
class MetSlice(VocabSlice):
    meeting: Meeting
    rank: int

    def reduce(self, values, op):
        return self.meeting.combine(self.rank, values, op)


def test_slices_of_the_vocabulary_make_the_whole():
    hidden, weight, labels = problem()
    borders, mixing, meeting = (0, 10, 30, VOCABULARY), torch.linspace(-1, 1, NUM_TOKENS), Meeting(3)

    def part(rank: int) -> tuple[torch.Tensor, ...]:
        rows = slice(borders[rank], borders[rank + 1])
        mine, states = weight.detach()[rows].clone().requires_grad_(), hidden.detach().clone().requires_grad_()
        vocab = MetSlice(rows.start, rows.stop - rows.start, meeting, rank)
        found, entropy = ChunkedHead(vocab, 0.7, with_entropy=True, chunk_tokens=4)(states, mine, labels)
        loss = (mixing * found).sum() + (mixing * entropy).sum()
        return found.detach(), entropy.detach(), *torch.autograd.grad(loss, (states, mine))

    with ThreadPoolExecutor(3) as threads:
        parts = list(threads.map(part, range(3)))
    chosen, entropy = plain(hidden, weight, labels, 0.7)
    grads = torch.autograd.grad((mixing * chosen).sum() + (mixing * entropy).sum(), (hidden, weight))
    for found, found_entropy, _, _ in parts:
        torch.testing.assert_close(found, chosen.detach())
        torch.testing.assert_close(found_entropy, entropy.detach())
    torch.testing.assert_close(sum(states for _, _, states, _ in parts), grads[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.cat([mine for _, _, _, mine in parts]), grads[1], atol=1e-5, rtol=1e-5)


def test_rows_behind_the_vocabulary_never_count():
    hidden, weight, labels = problem()
    labels, head = labels % (VOCABULARY - 2), ChunkedHead(VocabSlice(0, VOCABULARY - 2), with_entropy=True)
    before, _ = head(hidden, weight, labels)
    gradient = torch.autograd.grad(before.sum(), weight)[0]
    with torch.no_grad():
        weight[-2:] = 1e4
    after, _ = head(hidden, weight, labels)
    assert torch.equal(before, after)
    assert (gradient[-2:] == 0).all() and (gradient[:-2] != 0).any()


def test_a_slice_says_which_labels_are_its_own():
    is_here, place = VocabSlice(10, 5).places(torch.tensor([9, 10, 14, 15]))
    assert is_here.tolist() == [False, True, True, False]
    assert place.tolist() == [0, 0, 4, 0]


def test_large_logits_stay_finite():
    hidden, weight = torch.tensor([[300.0]]), torch.tensor([[1.0], [-1.0]])
    found, entropy = log_probs_from_hidden(hidden, weight, torch.tensor([1]), with_entropy=True)
    assert found.item() == pytest.approx(-600.0) and entropy.item() == pytest.approx(0.0, abs=1e-4)


def test_entropy_only_on_request():
    hidden, weight, labels = problem()
    assert log_probs_from_hidden(hidden, weight, labels)[1] is None


def test_a_frozen_head_still_lets_gradients_through():
    hidden, weight, labels = problem()
    log_probs_from_hidden(hidden, weight.detach(), labels, chunk_tokens=5)[0].sum().backward()
    assert hidden.grad is not None and hidden.grad.abs().sum() > 0 and weight.grad is None


def test_no_graph_without_gradients():
    hidden, weight, labels = problem()
    with torch.no_grad():
        assert not log_probs_from_hidden(hidden, weight, labels)[0].requires_grad
    assert not log_probs_from_hidden(hidden.detach(), weight.detach(), labels)[0].requires_grad


def test_a_rank_without_tokens_has_a_backward_too():
    hidden, weight, labels = problem()
    found, entropy = log_probs_from_hidden(hidden[:0], weight, labels[:0], with_entropy=True)
    assert found.shape == entropy.shape == (0,)
    (found.sum() + entropy.sum()).backward()
    assert weight.grad.abs().sum() == 0 and hidden.grad.abs().sum() == 0


def shapes_kept_for_the_backward(compute) -> list[tuple[int, ...]]:
    kept: list[tuple[int, ...]] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        compute()
    return kept


def test_no_logits_are_kept_for_the_backward():
    hidden, weight, labels = problem()
    chunked = shapes_kept_for_the_backward(lambda: log_probs_from_hidden(hidden, weight, labels, 1.0, True, 4))
    assert chunked and not [shape for shape in chunked if shape[-1] == VOCABULARY]
    assert (NUM_TOKENS, VOCABULARY) in shapes_kept_for_the_backward(lambda: plain(hidden, weight, labels, 1.0))


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden": torch.zeros(2, 3, 4)},
        {"weight": torch.zeros(5, 3)},
        {"labels": torch.zeros(3, dtype=torch.int64)},
        {"temperature": 0.0},
        {"chunk_tokens": 0},
    ],
)
def test_wrong_inputs_are_refused(changes):
    inputs = {"hidden": torch.zeros(2, 4), "weight": torch.zeros(5, 4), "labels": torch.zeros(2, dtype=torch.int64)}
    with pytest.raises(ValueError):
        log_probs_from_hidden(**{**inputs, **changes})
