# SPDX-License-Identifier: Apache-2.0
"""The head over one slice equals the plain one; over two slices of gloo ranks it is tested by the engines' contract."""

from __future__ import annotations

import pytest
import torch

from verl.algorithms.log_probs import log_probs_from_hidden
from verl.engines.vocab_parallel import VocabParallelHead, VocabSlice

VOCAB, HIDDEN, TOKENS = 23, 7, 11


def inputs(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(TOKENS, HIDDEN, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(VOCAB + 2, HIDDEN, generator=generator).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(0, VOCAB, (TOKENS,), generator=generator)


@pytest.mark.parametrize("chunk_tokens", [1, 4, 11, 64])
@pytest.mark.parametrize("with_entropy", [False, True])
def test_one_slice_equals_the_plain_head(chunk_tokens: int, with_entropy: bool) -> None:
    hidden, weight, labels = inputs()
    found = VocabParallelHead(VocabSlice(0, VOCAB), 0.7, with_entropy, chunk_tokens)(hidden, weight, labels)
    wanted = log_probs_from_hidden(hidden, weight[:VOCAB], labels, 0.7, with_entropy)
    mixed = [torch.arange(1.0, TOKENS + 1), torch.linspace(-1, 1, TOKENS)]
    gradients = []
    for log_probs, entropy in (found, wanted):
        loss = (log_probs * mixed[0]).sum()
        loss = loss if entropy is None else loss + (entropy * mixed[1]).sum()
        gradients.append(torch.autograd.grad(loss, (hidden, weight)))
    torch.testing.assert_close(found[0], wanted[0], atol=1e-5, rtol=1e-5)
    assert (found[1] is None) == (not with_entropy)
    if with_entropy:
        torch.testing.assert_close(found[1], wanted[1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-4, rtol=1e-5)


def test_rows_behind_the_vocabulary_never_count() -> None:
    hidden, weight, labels = inputs()
    head = VocabParallelHead(VocabSlice(0, VOCAB), with_entropy=True)
    before, _ = head(hidden, weight, labels)
    gradient = torch.autograd.grad(before.sum(), weight)[0]
    with torch.no_grad():
        weight[VOCAB:] = 1e4
    after, _ = head(hidden, weight, labels)
    assert torch.equal(before, after)
    assert (gradient[VOCAB:] == 0).all()
    assert (gradient[:VOCAB] != 0).any()


def test_no_tokens_still_have_a_backward_pass() -> None:
    hidden, weight, labels = inputs()
    log_probs, entropy = VocabParallelHead(VocabSlice(0, VOCAB), with_entropy=True)(hidden[:0], weight, labels[:0])
    assert log_probs.shape == (0,)
    assert entropy is not None
    (log_probs.sum() + entropy.sum()).backward()
    assert weight.grad is not None
    assert (weight.grad == 0).all()


def test_sixteen_bit_inputs_give_float32_answers_and_sixteen_bit_gradients() -> None:
    hidden, weight, labels = inputs(torch.bfloat16)
    log_probs, _ = VocabParallelHead(VocabSlice(0, VOCAB))(hidden, weight, labels)
    assert log_probs.dtype == torch.float32
    log_probs.sum().backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    assert {hidden.grad.dtype, weight.grad.dtype} == {torch.bfloat16}


def test_a_slice_says_which_labels_are_its_own() -> None:
    is_here, place = VocabSlice(10, 5).places(torch.tensor([9, 10, 14, 15]))
    assert is_here.tolist() == [False, True, True, False]
    assert place.tolist() == [0, 0, 4, 0]
