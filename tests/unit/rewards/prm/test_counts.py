# SPDX-License-Identifier: Apache-2.0
"""Totals become the metrics of a batch."""

from __future__ import annotations

from verl.rewards.prm.counts import count_metrics


def test_a_batch_is_the_difference_of_two_readings():
    before = {"retries": 2, "timeouts": 1, "failures": 1, "alive": 3, "cache_hits": 10, "cache_misses": 4}
    after = {"retries": 5, "timeouts": 2, "failures": 3, "alive": 2, "cache_hits": 11, "cache_misses": 7}
    assert count_metrics(before, after) == {
        "prm/retries/count": 3.0,
        "prm/timeouts/count": 1.0,
        "prm/failures/count": 2.0,
        "prm/replicas_alive/count": 2.0,
        "prm/cache_hits/share": 0.25,
    }


def test_without_a_cache_or_a_prm_nothing_is_claimed():
    assert count_metrics({}, {}) == {}
    assert set(count_metrics({"retries": 0}, {"retries": 1})) == {"prm/retries/count"}


def test_a_batch_without_requests_has_no_hits():
    assert count_metrics({}, {"cache_hits": 0, "cache_misses": 0}) == {"prm/cache_hits/share": 0.0}
