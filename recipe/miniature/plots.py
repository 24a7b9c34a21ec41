# SPDX-License-Identifier: Apache-2.0
"""Draws a comparison: accuracy over steps, accuracy at the end, monitors over steps. Computes nothing but smoothing.

Colours are Okabe and Ito's, which stay apart for colour-blind eyes; every line also has a marker and a name of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from recipe.miniature.summary import BASELINE, MONITORS, Comparison, FinishedRun

COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#0072B2", "#CC79A7", "#8C8C00")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
SHOWN_MONITORS = (
    "response/length/mean",
    "policy/entropy/mean",
    "prm/steps_per_response/mean",
    "prm/auc/mean",
    "prm/on_right/mean",
    "prm/on_wrong/mean",
)
_SMOOTHING = 10
_DPI = 90
_PANEL_COLUMNS = 3


def write_plots(comparison: Comparison, folder: Path) -> list[Path]:
    """Draw everything.

    Args:
        comparison: The runs, at least one.
        folder: Where the files go.

    Returns:
        The files.
    """
    figures = {
        "accuracy.png": draw_accuracy(comparison),
        "after.png": draw_after(comparison),
        "monitors.png": draw_monitors(comparison),
    }
    paths = []
    for name, figure in figures.items():
        paths.append(folder / name)
        figure.savefig(paths[-1], dpi=_DPI)
    return paths


def draw_accuracy(comparison: Comparison) -> Figure:
    """Draw a panel per method: mean, span of the seeds, each seed, and the baseline's mean.

    Args:
        comparison: The runs.

    Returns:
        The figure.
    """
    methods = comparison.methods
    figure, panels = _panels(len(methods), share_y=True)
    baseline = _mean_curve([run.curve for run in comparison.of(BASELINE)])
    for place, (panel, method) in enumerate(zip(panels, methods, strict=True)):
        curves = [run.curve for run in comparison.of(method)]
        colour, mean = _colour(comparison, method), _mean_curve(curves)
        steps = list(mean)
        if method != BASELINE and baseline:
            panel.plot(list(baseline), list(baseline.values()), color="0.45", linestyle="--", linewidth=1.2)
            if place <= 1:
                panel.annotate(
                    f"{BASELINE}, mean",
                    xy=(list(baseline)[len(baseline) // 2], list(baseline.values())[len(baseline) // 2]),
                    xytext=(12, -22),
                    textcoords="offset points",
                    color="0.35",
                    fontsize=8,
                )
        low = [min(curve[step] for curve in curves) for step in steps]
        high = [max(curve[step] for curve in curves) for step in steps]
        panel.fill_between(steps, low, high, color=colour, alpha=0.18, linewidth=0)
        for curve in curves:
            panel.plot(list(curve), list(curve.values()), color=colour, linewidth=0.7, alpha=0.6)
        panel.plot(steps, list(mean.values()), color=colour, linewidth=2.0, marker="o", markersize=3)
        seeds = f"{len(curves)} seed{'s' if len(curves) > 1 else ''}"
        panel.set_title(f"{method}: {mean[steps[-1]]:.3f} after ({seeds})", fontsize=10, loc="left")
        panel.set_xlabel("training step", fontsize=9)
    for panel in panels[::_PANEL_COLUMNS]:
        panel.set_ylabel("held-out accuracy", fontsize=9)
    return figure


def draw_after(comparison: Comparison) -> Figure:
    """Draw the accuracy after training: every seed a dot, the mean a bar.

    Args:
        comparison: The runs.

    Returns:
        The figure.
    """
    methods = comparison.methods
    figure = Figure(figsize=(7.0, 0.9 + 0.45 * len(methods)), layout="constrained")
    axes = figure.subplots()
    _plain(axes)
    for row, method in enumerate(methods):
        values, colour = [run.after for run in comparison.of(method)], _colour(comparison, method)
        mean = sum(values) / len(values)
        axes.plot(values, [row] * len(values), linestyle="", marker="o", markersize=6, color=colour, alpha=0.65)
        axes.plot([mean, mean], [row - 0.28, row + 0.28], color=colour, linewidth=2.5)
        axes.annotate(
            f"{mean:.3f}", xy=(1.01, row), xycoords=("axes fraction", "data"), fontsize=9, va="center", color="0.2"
        )
    axes.set_yticks(range(len(methods)), methods)
    axes.set_ylim(len(methods) - 0.5, -0.5)
    axes.set_xlabel("held-out accuracy after training; a dot is a seed, the bar and the number their mean", fontsize=9)
    return figure


def draw_monitors(comparison: Comparison) -> Figure:
    """Draw a panel per monitor with every method's mean over seeds, smoothed over some steps.

    Args:
        comparison: The runs.

    Returns:
        The figure.
    """
    shown = [metric for metric in SHOWN_MONITORS if any(metric in run.series for run in comparison.runs)]
    figure, panels = _panels(len(shown), share_y=False)
    for panel, metric in zip(panels, shown, strict=True):
        panel.set_title(MONITORS[metric], fontsize=10, loc="left")
        panel.set_xlabel("training step", fontsize=9)
        for method in comparison.methods:
            values = smoothed(mean_series(comparison.of(method), metric))
            if values:
                marks = {"marker": _marker(comparison, method), "markevery": max(1, len(values) // 6), "markersize": 5}
                steps = range(1, len(values) + 1)
                panel.plot(steps, values, color=_colour(comparison, method), linewidth=1.4, **marks)
    handles = [
        Line2D([], [], color=_colour(comparison, name), marker=_marker(comparison, name), label=name)
        for name in comparison.methods
    ]
    columns = min(len(handles), 7)
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    return figure


def mean_series(runs: Sequence[FinishedRun], metric: str) -> list[float]:
    """Average a metric over seeds, step by step.

    Args:
        runs: The runs.
        metric: Its name.

    Returns:
        One number per training step, NaN where no run has one; empty where no run has the metric.
    """
    columns = zip(*(run.series[metric] for run in runs if metric in run.series), strict=False)
    known = [[value for value in column if not math.isnan(value)] for column in columns]
    return [sum(values) / len(values) if values else math.nan for values in known]


def smoothed(values: Sequence[float], width: int = _SMOOTHING) -> list[float]:
    """Average over the steps up to each.

    Args:
        values: One number per step, NaN where there is none.
        width: Over how many steps.

    Returns:
        As many numbers.
    """
    result = []
    for end in range(1, len(values) + 1):
        known = [value for value in values[max(0, end - width) : end] if not math.isnan(value)]
        result.append(sum(known) / len(known) if known else math.nan)
    return result


def _panels(count: int, *, share_y: bool) -> tuple[Figure, list[Axes]]:
    """Make a figure of `count` panels, three in a row."""
    columns = min(_PANEL_COLUMNS, count)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(3.5 * columns, 2.6 * rows + 0.4), layout="constrained")
    panels = list(figure.subplots(rows, columns, sharex=True, sharey=share_y, squeeze=False).flat)
    for panel in panels[count:]:
        panel.remove()
    for panel in panels[:count]:
        _plain(panel)
    return figure, panels[:count]


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="both", color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)


def _mean_curve(curves: Sequence[dict[int, float] | object]) -> dict[int, float]:
    """Average curves where all have a value."""
    known = [dict(curve) for curve in curves]
    steps = sorted(set.intersection(*(set(curve) for curve in known))) if known else []
    return {step: sum(curve[step] for curve in known) / len(known) for step in steps}


def _place(comparison: Comparison, method: str) -> int:
    return list(comparison.about["methods"]).index(method)


def _colour(comparison: Comparison, method: str) -> str:
    return COLOURS[_place(comparison, method) % len(COLOURS)]


def _marker(comparison: Comparison, method: str) -> str:
    return MARKERS[_place(comparison, method) % len(MARKERS)]
