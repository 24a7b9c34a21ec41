# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from verl.engines.length_buckets import MAX_PADDING_SHARE, length_buckets, padded_places

LENGTHS = st.lists(st.integers(1, 200), min_size=1, max_size=40)


@given(lengths=LENGTHS, max_padding=st.sampled_from([0.0, 0.03, 0.2, 1.0]))
def test_every_bucket_keeps_to_the_share_and_every_sequence_is_in_one(lengths: list[int], max_padding: float) -> None:
    buckets = length_buckets(lengths, max_padding)
    assert sorted(index for bucket in buckets for index in bucket) == list(range(len(lengths)))
    for bucket in buckets:
        held = [lengths[index] for index in bucket]
        assert held[0] == max(held)
        places = len(held) * max(held)
        assert places - sum(held) <= max_padding * places + 1e-9
    assert padded_places(lengths, max_padding) == sum(len(b) * max(lengths[i] for i in b) for b in buckets)


@given(lengths=LENGTHS)
def test_the_whole_batch_keeps_to_the_share(lengths: list[int]) -> None:
    assert 1.0 - sum(lengths) / padded_places(lengths) <= MAX_PADDING_SHARE + 1e-9


@given(lengths=LENGTHS)
def test_the_extremes_are_one_bucket_and_one_per_length(lengths: list[int]) -> None:
    assert len(length_buckets(lengths, 1.0)) == 1
    assert len(length_buckets(lengths, 0.0)) == len(set(lengths))


def test_nearly_equal_lengths_share_a_bucket() -> None:
    assert length_buckets([100, 50, 99, 98, 50]) == [[0, 2, 3], [1, 4]]
