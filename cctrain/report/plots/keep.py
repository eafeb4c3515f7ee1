"""Keep ratios with their intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from cctrain.comparison.compare import Answer, Comparison
from cctrain.report import words
from cctrain.report.panels import by_title, sides
from cctrain.report.plots.canvas import Canvas

_ROW, _HEAD, _MOST_RECIPES = 46, 30, 30
_WIDE = 3.0
"""The largest ratio over the smallest from which on they are drawn in logarithms."""
_MARKERS = {True: "s", False: "o"}
"""By whether it is emulated."""


def keep_ratios(answer: Answer, canvas: Canvas) -> Figure:
    """A row a comparison: ratio, interval, verdict; the seed post's figure below where the recipe is one of its."""
    rows = list(_rows(answer))
    height = sum(_ROW if row else _HEAD for row in rows) + 50
    figure = canvas.figure(height)
    axes = figure.add_subplot()
    canvas.style(axes)
    margin, colours = answer.options.margin, canvas.colours
    axes.axvspan(1 - margin, 1 + margin, color=colours["free"], alpha=0.18, linewidth=0)
    axes.axvline(1, color=colours["free"], linewidth=1.5)
    lowest, highest = 0.97, 1.015
    y = 0.0
    for row in rows:
        if isinstance(row, str):
            _write(axes, canvas, (0, y + 20), row, weight="bold")
            y += _HEAD
            continue
        _write(axes, canvas, (0, y + 12), row.name)
        _write(axes, canvas, (1, y + 12), row.label, weight="bold", ha="right")
        line, ends = colours[row.colour], row.interval or (row.value, row.value)
        style = "-" if row.is_solid else (0, (0.5, 0.4))
        axes.plot(ends, [y + 27] * 2, color=line, linewidth=5, alpha=0.45, linestyle=style)
        face = line if row.is_solid else colours["page"]
        axes.plot([row.value], [y + 27], marker=row.marker, color=line, markersize=9, markerfacecolor=face)
        lowest, highest = min(lowest, *ends), max(highest, *ends)
        y += _ROW
    _set_across(axes, canvas, lowest, highest)
    axes.set_ylim(y, 0)
    axes.set_yticks([])
    is_of_cc = any(one.is_of_cc for one in answer.comparisons)
    what = "keep ratio: throughput kept, 1 is free" if is_of_cc else "throughput of the one over that of the other"
    axes.set_xlabel(f"{what} (logarithmic)" if axes.get_xscale() == "log" else what)
    return figure


def _set_across(axes: Axes, canvas: Canvas, lowest: float, highest: float) -> None:
    """Room for the ratios and for the column of verdicts; in logarithms where a step that is several times as fast
    would press together what is kept."""
    forth, back = (math.log, math.exp) if highest > _WIDE * lowest else (float, float)
    if forth is math.log:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
    low, high = forth(lowest), forth(highest)
    space = 0.04 * (high - low)
    labels = 9 * canvas.font / canvas.width  # the column of verdicts, as a share of the width
    axes.set_xlim(back(low - space), back(high + space + (high - low + 2 * space) * labels / (1 - labels)))


def _write(axes: Axes, canvas: Canvas, place: tuple[float, float], text: str, **style: Any) -> None:
    """At a share of the width and a height in the data's own numbers, before the lines."""
    across, colours = axes.get_yaxis_transform(), canvas.colours
    box = {"facecolor": colours["page"], "edgecolor": "none", "pad": 1}
    axes.text(*place, canvas.short(text), transform=across, color=colours["ink"], size=canvas.font, bbox=box, **style)


@dataclass(frozen=True, slots=True)
class _Row:
    name: str
    value: float
    label: str
    interval: tuple[float, float] | None
    colour: str
    marker: str
    is_solid: bool = True
    """Otherwise the interval is that of the noise within the runs."""


def _rows(answer: Answer) -> list[str | _Row]:
    rows: list[str | _Row] = []
    for title, group in list(by_title(answer).items())[:_MOST_RECIPES]:
        rows.append(title)
        colours = {arm.label: side.colour for side in sides(group) for arm in side.arms}
        rows += [_row(one, colours[one.other_arms[0].label]) for one in group]
        if seed := words.seed_of(group[0]):
            rows.append(_Row(f"seed post, {seed[0]}", 1 - seed[1], f"{1 - seed[1]:.3f}", None, "muted", "D"))
    return rows


def _row(one: Comparison, colour: str) -> _Row:
    interval = one.ci95 or one.within_run_ci95
    label = f"{one.keep_ratio:.3f}  {one.verdict}"
    return _Row(words.what(one), one.keep_ratio, label, interval, colour, _MARKERS[one.is_emulated], bool(one.ci95))
