# SPDX-License-Identifier: Apache-2.0
"""Charts as PNG files. Knows numbers and names; draws without a display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

_BINS = 40
_MOST_SOURCES = 12
_COLUMNS = 3
_DOTS_PER_INCH = 130
_ALL, _KEPT = "#9aa5b1", "#1f6feb"


def draw_histograms(path: Path, scores: Mapping[str, np.ndarray], kept: Mapping[str, np.ndarray], title: str) -> None:
    """Draw one histogram per source: all scores, and those that were kept.

    Args:
        path: PNG file to write.
        scores: [S] by source, the largest sources are drawn where there are more than twelve.
        kept: [k] by source.
        title: Above all.
    """
    sources = sorted((name for name in scores if len(scores[name])), key=lambda name: -len(scores[name]))
    sources = sources[:_MOST_SOURCES]
    columns = min(_COLUMNS, len(sources))
    rows = -(-len(sources) // columns)
    together = np.concatenate([scores[source] for source in sources])
    low, high = float(together.min()), float(together.max())
    edges = np.linspace(low, high if high > low else low + 1.0, _BINS + 1)
    figure = Figure(figsize=(4.6 * columns, 0.6 + 2.8 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True).flat
    for source, axis in zip(sources, axes, strict=False):
        axis.hist(scores[source], edges, color=_ALL, label=f"all {len(scores[source])}")
        axis.hist(kept.get(source, []), edges, color=_KEPT, label=f"kept {len(kept.get(source, []))}")
        axis.set_title(source, fontsize=10)
        axis.set_xlabel("score")
        axis.set_ylabel("rows")
        axis.legend(fontsize=8)
    for axis in list(axes):
        axis.set_visible(False)
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=_DOTS_PER_INCH)


def draw_curves(
    path: Path, sizes: Sequence[int], curves: Mapping[str, Sequence[float]], styles: Mapping[str, str], title: str
) -> None:
    """Draw accuracy over the number of candidates.

    Args:
        path: PNG file to write.
        sizes: [n] numbers of candidates.
        curves: [n] accuracies by method.
        styles: Line style by method, a solid line for others.
        title: Above it.
    """
    figure = Figure(figsize=(8.0, 4.8), layout="constrained")
    axis = figure.subplots()
    for number, (method, accuracies) in enumerate(curves.items()):
        style = styles.get(method, "-")
        axis.plot(sizes, accuracies, style, color=f"C{number % 10}", marker="o", markersize=3.5, label=method)
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_locator(FixedLocator(list(sizes)))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xticklabels([str(size) for size in sizes])
    axis.set_xlabel("candidates N")
    axis.set_ylabel("accuracy")
    axis.set_title(title, fontsize=11)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path, dpi=_DOTS_PER_INCH)
