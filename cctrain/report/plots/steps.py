"""Step times: traces with warm-up and changes of level, and how they are distributed."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cctrain.comparison.arms import Arm
from cctrain.comparison.compare import Comparison
from cctrain.load import Floats, Ints
from cctrain.report.panels import Side, sides
from cctrain.report.plots.canvas import Canvas

_MOST_RUNS, _MOST_POINTS = 6, 250


def traces(group: list[Comparison], canvas: Canvas) -> Figure:
    """A panel a side, a line a run: grey where not measured or set aside, dashed lines where the level changed."""
    shown = sides(group)
    figure = canvas.figure(150 * len(shown) + 30)
    panels = figure.subplots(len(shown), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    steady = np.concatenate([_times(arm, arm.steady) for side in shown for arm in side.arms])
    low, high = steady.min(), np.quantile(steady, 0.995)
    space = 0.25 * (high - low) + 0.02 * high
    unit, name = _unit(high)
    for axes, side in zip(panels, shown, strict=True):
        canvas.style(axes, grid="y")
        axes.set_ylim((low - space) * unit, (high + space) * unit)
        for arm in side.arms[:_MOST_RUNS]:
            _trace(axes, arm, side, canvas, unit)
        measured = [arm.run.steps.step[~arm.run.steps.is_warmup] for arm in side.arms]
        axes.axvspan(0.5, max(int(each[0]) for each in measured) - 0.5, color=canvas.colours["muted"], alpha=0.12, lw=0)
        more = f", the first {_MOST_RUNS} of {len(side.arms)} runs" if len(side.arms) > _MOST_RUNS else ""
        axes.set_title(
            canvas.short(side.name) + more, color=canvas.colours[side.colour], size=canvas.font, weight="bold"
        )
    figure.supylabel(f"step time, {name}", color=canvas.colours["muted"], size=canvas.font - 1)
    panels[-1].set_xlabel("step")
    panels[-1].set_xlim(left=0.5)
    return figure


def _trace(axes: Axes, arm: Arm, side: Side, canvas: Canvas, unit: float) -> None:
    steps = arm.run.steps
    colour, grey = canvas.colours[side.colour], canvas.colours["muted"]
    first = arm.steady[0] if len(arm.steady) else len(steps)
    before = np.arange(first)
    if arm.run.mode == "emulated":
        before = arm.measured[arm.measured < first]
    style = {"linestyle": "none", "marker": "."} if arm.run.mode == "emulated" else {"linestyle": "-"}
    for chosen, line, alpha in ((before, grey, 0.55), (arm.steady, colour, 0.75)):
        kept = thinned(steps.step_time_s[chosen])
        axes.plot(
            steps.step[chosen][kept],
            steps.step_time_s[chosen][kept] * unit,
            color=line,
            alpha=alpha,
            linewidth=1.1,
            markersize=4,
            **style,  # type: ignore[arg-type]
        )
    if arm.shift is not None:
        axes.axvline(arm.shift, color=canvas.colours["ink"], linewidth=1.2, linestyle="--")
        axes.annotate(
            "change of level",
            (arm.shift, 1),
            xycoords=("data", "axes fraction"),
            xytext=(4, -12),
            textcoords="offset points",
            color=canvas.colours["ink"],
            size=canvas.font - 2,
        )


def thinned(values: Floats) -> Ints:
    """Indices of at most 250 values: of each stretch the one farthest from the median, so that no spike is lost."""
    if len(values) <= _MOST_POINTS:
        return np.arange(len(values))
    far = np.abs(values - np.median(values))
    edges = np.linspace(0, len(values), _MOST_POINTS + 1).astype(int)
    return np.array([left + int(np.argmax(far[left:right])) for left, right in pairwise(edges)])


def distributions(group: list[Comparison], canvas: Canvas) -> Figure:
    """A row a side: how often the steady steps of all its runs took how long, and a tick at each run's median."""
    shown = sides(group)
    figure = canvas.figure(78 * len(shown) + 40)
    rows = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
    times = [np.concatenate([_times(arm, arm.steady) for arm in side.arms]) for side in shown]
    low = min(np.quantile(each, 0.002) for each in times)
    high = max(np.quantile(each, 0.995) for each in times)
    unit, name = _unit(high)
    space = 0.03 * (high - low) + 0.002 * high
    edges = np.linspace(low - space, high + space, 60 if canvas.is_narrow else 110)
    for axes, side, each in zip(rows, shown, times, strict=True):
        canvas.style(axes)
        counts, _ = np.histogram(each, edges)
        colour = canvas.colours[side.colour]
        axes.stairs(counts / counts.max(initial=1), edges * unit, fill=True, color=colour, alpha=0.55)
        medians = [arm.step_time_s * unit for arm in side.arms]
        axes.plot(medians, [-0.13] * len(medians), marker="|", linestyle="none", color=colour, markersize=9)
        axes.set_ylim(-0.25, 1.05)
        axes.set_yticks([])
        above = int(np.sum(each > edges[-1]))
        beyond = f", {above} slower beyond the edge" if above else ""
        axes.set_title(canvas.short(side.name) + beyond, color=colour, size=canvas.font, weight="bold")
    rows[-1].set_xlabel(f"step time, {name}")
    return figure


def _times(arm: Arm, chosen: Ints) -> Floats:
    return arm.run.steps.step_time_s[chosen]


def _unit(seconds: float) -> tuple[float, str]:
    return (1000.0, "ms") if seconds < 1 else (1.0, "s")
