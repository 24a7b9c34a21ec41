# SPDX-License-Identifier: Apache-2.0
"""Running totals of dispatcher and cache as metrics of one batch. Knows numbers only."""

from __future__ import annotations

from collections.abc import Mapping

EVENTS = ("retries", "timeouts", "failures")
"""Totals of the dispatcher that only grow."""


def count_metrics(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, float]:
    """Say what happened between two readings of the totals.

    Args:
        before: When the batch was opened: retries, timeouts, failures, cache_hits, cache_misses, as far as there are.
        after: When it was scored; with `alive`, the number of replicas left.

    Returns:
        `prm/retries/count` and the like, `prm/replicas_alive/count`, `prm/cache_hits/share` of the answered requests;
        only what the readings hold.
    """
    grown = {name: after[name] - before.get(name, 0) for name in after}
    metrics = {f"prm/{name}/count": float(grown[name]) for name in EVENTS if name in grown}
    if "alive" in after:
        metrics["prm/replicas_alive/count"] = float(after["alive"])
    if "cache_hits" in grown:
        answered = grown["cache_hits"] + grown["cache_misses"]
        metrics["prm/cache_hits/share"] = grown["cache_hits"] / max(answered, 1)
    return metrics
