# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.tiny_models import random_padded
from verl.engines.packing import (
    MicroBatchSpec,
    PaddedSequences,
    equalise_micro_batches,
    pack,
    pack_labelled,
    plan_micro_batches,
    without_targets,
)
from verl.utils.errors import UserError


def _padded(responses: list[list[int]], mask: list[list[int]]) -> PaddedSequences:
    prompts = torch.tensor([[0, 11, 12], [21, 22, 23]])[: len(responses)]
    return PaddedSequences(prompts, (prompts > 0).long(), torch.tensor(responses), torch.tensor(mask))


def test_hand_packed_batch() -> None:
    packed = pack(_padded([[31, 32], [41, 0]], [[1, 1], [1, 0]]), rows=[1, 0])
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
    packed = pack(_padded([[31, 32, 33, 34, 35]], [[1, 0, 0, 1, 0]]), rows=[0])
    assert packed.input_ids.tolist() == [11, 12, 31, 32, 33, 34]
    assert packed.target_ids.tolist() == [31, 34]
    assert packed.input_ids[packed.logit_positions].tolist() == [12, 33]
    assert packed.scatter(torch.tensor([1.0, 2.0])).tolist() == [[1.0, 0.0, 0.0, 2.0, 0.0]]


def test_an_empty_response_leaves_its_prompt_and_an_empty_prompt_is_refused() -> None:
    packed = pack(_padded([[0, 0], [41, 0]], [[0, 0], [1, 0]]), rows=[0, 1])
    assert packed.input_ids.tolist() == [11, 12, 21, 22, 23, 41]
    assert packed.scatter(torch.tensor([9.0])).tolist() == [[0.0, 0.0], [9.0, 0.0]]
    batch = _padded([[31, 32]], [[1, 1]])
    with pytest.raises(ValueError, match="row 0 has an empty prompt"):
        pack(PaddedSequences(batch.prompts, batch.prompt_mask * 0, batch.responses, batch.response_mask), [0])


def test_scatter_passes_gradients_to_its_values() -> None:
    packed = pack(_padded([[31, 32], [41, 0]], [[1, 1], [1, 0]]), rows=[0, 1])
    values = torch.arange(3.0, requires_grad=True)
    (packed.scatter(values) * torch.tensor([[1.0, 2.0], [4.0, 8.0]])).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [1.0, 2.0, 4.0]


def test_labelled_sequences() -> None:
    ids = [torch.tensor([5, 6, 7]), torch.tensor([8, 9])]
    packed = pack_labelled(ids, [torch.tensor([0, 2]), torch.tensor([1])], [torch.tensor([1, 0]), torch.tensor([1])])
    assert packed.input_ids[packed.logit_positions].tolist() == [5, 7, 9]
    assert packed.position_ids.tolist() == [0, 1, 2, 0, 1]
    assert packed.target_ids.tolist() == [1, 0, 1]
    assert packed.scatter(torch.tensor([1.0, 2.0, 3.0])).tolist() == [[1.0, 2.0], [3.0, 0.0]]


def test_without_targets_keeps_the_tokens() -> None:
    filler = without_targets(pack(_padded([[31, 32]], [[1, 1]]), [0]))
    assert filler.num_tokens == 4
    assert filler.logit_positions.numel() == filler.target_ids.numel() == 0


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=12), extra=st.integers(0, 20), data=st.data())
def test_micro_batches_keep_the_limit_also_after_ranks_agree_on_more(
    lengths: list[int], extra: int, data: st.DataObject
) -> None:
    budget = max(lengths) + extra
    parts = plan_micro_batches(lengths, MicroBatchSpec(max_tokens=budget))
    agreed = len(parts) + data.draw(st.integers(0, 5))
    final = equalise_micro_batches(parts, lengths, agreed)
    assert len(final) == agreed
    assert sorted(i for part in final for i in part) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in part) <= budget for part in final)
    if agreed <= len(lengths):
        assert all(final)


@pytest.mark.parametrize(("num_rows", "size"), [(7, 3), (6, 3), (1, 4), (5, 1)])
def test_fixed_size_micro_batches_are_never_larger_than_asked(num_rows: int, size: int) -> None:
    lengths = [3, 50, 4, 41, 5, 30, 2][:num_rows]
    parts = plan_micro_batches(lengths, MicroBatchSpec(max_sequences=size))
    assert len(parts) == -(-num_rows // size)
    assert all(1 <= len(part) <= size for part in parts)
    assert sorted(i for part in parts for i in part) == list(range(num_rows))


def test_a_budget_below_the_longest_sequence_names_key_value_and_mend() -> None:
    with pytest.raises(UserError, match=r"ppo_max_token_len_per_gpu=10: .*17 tokens.*at least 17"):
        plan_micro_batches([4, 17], MicroBatchSpec(max_tokens=10))


def test_lengths_match_what_is_packed() -> None:
    padded = random_padded([3, 5, 2], [4, 1, 6])
    assert padded.lengths().tolist() == [7, 6, 8]
    assert pack(padded, [0, 1, 2]).cu_seqlens.tolist() == [0, 7, 13, 21]
