# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import time

import pytest
import torch

from verl.weight_sync.digest import digest_of
from verl.weight_sync.sent import SentWeights, take_part


def slow_weights(seconds: float = 0.01):
    for name, numel in (("a", 4), ("b", 100), ("c", 1)):
        time.sleep(seconds)
        yield name, torch.full((numel,), 2.0)


@pytest.mark.parametrize("with_digests", [True, False])
def test_weights_are_counted_timed_and_digested_on_their_way(with_digests: bool) -> None:
    started = time.perf_counter()
    sent = SentWeights(slow_weights(), with_digests)
    read = []
    for pair in sent:
        time.sleep(0.02)  # what the reader does is not gathering
        read.append(pair)
    assert [name for name, _ in read] == ["a", "b", "c"]
    assert (sent.num_tensors, sent.num_bytes, sent.largest_bytes) == (3, 420, 400)
    assert sent.digests == ({name: digest_of(tensor) for name, tensor in read} if with_digests else {})
    total_s = time.perf_counter() - started
    assert 0.03 <= sent.gather_s <= total_s - 0.06
    report = sent.report(5, started)
    assert (report.version, report.num_bytes, report.digests_compared) == (5, 420, with_digests)
    assert report.load_s >= 0.06
    assert report.bytes_per_s == pytest.approx(420 / (report.gather_s + report.load_s + report.digest_s))


def test_ranks_that_send_nothing_take_part() -> None:
    seen = []

    def gather():
        for pair in slow_weights(0):
            seen.append(pair)
            yield pair

    report = take_part(gather(), 7)
    assert len(seen) == 3
    assert (report.version, report.num_tensors, report.num_bytes, report.digests_compared) == (7, 0, 0, False)
