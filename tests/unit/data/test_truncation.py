# SPDX-License-Identifier: Apache-2.0
import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl.data.truncation import kept_spans, truncate


@pytest.mark.parametrize(
    ("cut", "kept"), [("left", [3, 4, 5, 6, 7]), ("right", [0, 1, 2, 3, 4]), ("middle", [0, 1, 5, 6, 7])]
)
def test_where_a_sequence_is_cut(cut, kept):
    assert truncate(list(range(8)), 5, cut) == kept


@given(st.integers(0, 50), st.integers(1, 60), st.sampled_from(["left", "right", "middle"]))
def test_the_limit_is_used_up_and_order_kept(length, limit, cut):
    kept = truncate(list(range(length)), limit, cut)
    assert len(kept) == min(length, limit)
    assert kept == sorted(set(kept))
    assert sum(end - start for start, end in kept_spans(length, limit, cut)) == len(kept)
