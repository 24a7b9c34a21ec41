# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from tests.helpers.tiny_models import random_padded
from verl.engines.packing import (
    LabelledSequences,
    PaddedSequences,
    padded_to_longest,
    padded_to_multiple,
    without_targets,
)


def _padded(responses: list[list[int]], mask: list[list[int]]) -> PaddedSequences:
    prompts = torch.tensor([[0, 11, 12], [21, 22, 23]])[: len(responses)]
    return PaddedSequences(prompts, (prompts > 0).long(), torch.tensor(responses), torch.tensor(mask))


def test_hand_packed_batch() -> None:
    packed = _padded([[31, 32], [41, 0]], [[1, 1], [1, 0]]).pack([1, 0])
    assert packed.input_ids.tolist() == [21, 22, 23, 41, 11, 12, 31, 32]
    assert packed.position_ids.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert packed.cu_seqlens.tolist() == [0, 4, 8]
    assert packed.cu_seqlens.dtype == torch.int32
    assert (packed.max_seqlen, packed.num_tokens, packed.num_sequences) == (4, 8, 2)
    # The token before each response token predicts it.
    assert packed.input_ids[packed.logit_positions].tolist() == [23, 12, 31]
    assert packed.target_ids.tolist() == [41, 31, 32]
    assert packed.scatter(torch.tensor([1.0, 2.0, 3.0])).tolist() == [[1.0, 0.0], [2.0, 3.0]]
    assert packed.gather(torch.tensor([[5, 6], [7, 8]])).tolist() == [7, 5, 6]


def test_a_hole_in_the_mask_stays_as_context_and_what_follows_the_last_target_is_dropped() -> None:
    packed = _padded([[31, 32, 33, 34, 35]], [[1, 0, 0, 1, 0]]).pack([0])
    assert packed.input_ids.tolist() == [11, 12, 31, 32, 33, 34]
    assert packed.target_ids.tolist() == [31, 34]
    assert packed.input_ids[packed.logit_positions].tolist() == [12, 33]
    assert packed.scatter(torch.tensor([1.0, 2.0])).tolist() == [[1.0, 0.0, 0.0, 2.0, 0.0]]


def test_an_empty_response_leaves_its_prompt_and_an_empty_prompt_is_refused() -> None:
    packed = _padded([[0, 0], [41, 0]], [[0, 0], [1, 0]]).pack([0, 1])
    assert packed.input_ids.tolist() == [11, 12, 21, 22, 23, 41]
    assert packed.scatter(torch.tensor([9.0])).tolist() == [[0.0, 0.0], [9.0, 0.0]]
    batch = _padded([[31, 32]], [[1, 1]])
    with pytest.raises(ValueError, match="row 0 has an empty prompt"):
        PaddedSequences(batch.prompts, batch.prompt_mask * 0, batch.responses, batch.response_mask).pack([0])


def test_scatter_passes_gradients_to_its_values() -> None:
    packed = _padded([[31, 32], [41, 0]], [[1, 1], [1, 0]]).pack([0, 1])
    values = torch.arange(3.0, requires_grad=True)
    (packed.scatter(values) * torch.tensor([[1.0, 2.0], [4.0, 8.0]])).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [1.0, 2.0, 4.0]


def test_labelled_sequences_are_read_at_the_labelled_tokens() -> None:
    labelled = LabelledSequences(
        input_ids=torch.tensor([[5, 6, 7], [8, 9, 0]]),
        attention_mask=torch.tensor([[1, 1, 1], [1, 1, 0]]),
        positions=torch.tensor([[0, 2], [1, 0]]),
        labels=torch.tensor([[1.0, 0.25], [0.5, 0.0]]),
        label_mask=torch.tensor([[1, 1], [1, 0]]),
    )
    packed = labelled.pack([1, 0])
    assert packed.input_ids.tolist() == [8, 9, 5, 6, 7]
    assert packed.input_ids[packed.logit_positions].tolist() == [9, 5, 7]
    assert packed.position_ids.tolist() == [0, 1, 0, 1, 2]
    assert packed.gather(labelled.labels).tolist() == [0.5, 1.0, 0.25]
    assert labelled.lengths().tolist() == [3, 2]


def test_padding_to_the_longest_keeps_every_target() -> None:
    packed = random_padded([3, 5, 2], [4, 1, 6]).pack([0, 1, 2])
    padded = padded_to_longest(packed)
    assert padded.cu_seqlens.tolist() == [0, 8, 16, 24]
    assert padded.num_tokens == 24
    assert padded.input_ids[padded.logit_positions].equal(packed.input_ids[packed.logit_positions])
    assert padded.input_ids[:7].equal(packed.input_ids[:7])
    assert padded.position_ids.tolist() == list(range(8)) * 3


def test_without_targets_keeps_the_tokens() -> None:
    filler = without_targets(_padded([[31, 32]], [[1, 1]]).pack([0]))
    assert filler.num_tokens == 4
    assert filler.logit_positions.numel() == filler.target_ids.numel() == 0


def test_lengths_match_what_is_packed() -> None:
    padded = random_padded([3, 5, 2], [4, 1, 6])
    assert padded.lengths().tolist() == [7, 6, 8]
    assert padded.pack([0, 1, 2]).cu_seqlens.tolist() == [0, 7, 13, 21]


def test_tokens_are_filled_up_to_a_multiple_by_a_sequence_of_their_own() -> None:
    packed = _padded([[31, 32], [41, 0]], [[1, 1], [1, 0]]).pack([1, 0])
    filled = padded_to_multiple(packed, 5)
    assert filled.num_tokens == 10
    assert filled.input_ids.tolist() == [*packed.input_ids.tolist(), 0, 0]
    assert filled.position_ids.tolist()[-2:] == [0, 1]
    assert filled.cu_seqlens.tolist() == [0, 4, 8, 10]
    assert filled.cu_seqlens.dtype == torch.int32
    assert filled.logit_positions.tolist() == packed.logit_positions.tolist()
    assert filled.max_seqlen == 4
    assert padded_to_multiple(packed, 13).max_seqlen == 5
    assert padded_to_multiple(packed, 4) is packed
