"""What the time goes into: phases of a step, and what each class of tolls costs."""

from __future__ import annotations

from matplotlib.figure import Figure

from cctrain.comparison.compare import Comparison
from cctrain.report.explained import Explained
from cctrain.report.panels import Side, sides
from cctrain.report.plots.canvas import Canvas

_COLOURS = {"data_wait": "phase4", "forward": "phase2", "backward": "phase3", "optimizer": "phase1", "other": "phase5"}


def phase_means(side: Side) -> dict[str, float]:
    """Mean seconds a step of each phase, over the side's runs."""
    names = list(dict.fromkeys(name for arm in side.arms for name in arm.phases_s))
    names.sort(key=lambda name: list(_COLOURS).index(name) if name in _COLOURS else len(_COLOURS))
    return {name: sum(arm.phases_s.get(name, 0.0) for arm in side.arms) / len(side.arms) for name in names}


def phases(group: list[Comparison], canvas: Canvas) -> Figure:
    """A bar a side, its phases one after the other, in time a step."""
    shown = [(side, phase_means(side)) for side in sides(group)]
    figure = canvas.figure(54 * len(shown) + (96 if canvas.is_narrow else 74))
    axes = figure.add_subplot()
    canvas.style(axes)
    longest = max(sum(means.values()) for _, means in shown)
    unit, name = (1000, "ms") if longest < 1 else (1, "s")
    for row, (side, means) in enumerate(shown):
        left = 0.0
        for phase, seconds in means.items():
            colour = canvas.colours[_COLOURS.get(phase, "muted")]
            label = canvas.short(phase)[:20] if row == 0 else None
            axes.barh(row, seconds * unit, 0.45, left, color=colour, edgecolor=canvas.colours["page"], label=label)
            left += seconds * unit
        text = f"{canvas.short(side.name)}, {left:,.{0 if unit == 1000 else 2}f} {name}"
        axes.text(0, row - 0.32, text, color=canvas.colours[side.colour], weight="bold", va="bottom")
    axes.set_ylim(len(shown) - 0.5, -0.75)
    axes.set_yticks([])
    axes.set_xlabel(f"mean time a step, {name}")
    canvas.legend(axes, 3 if canvas.is_narrow else 6)
    return figure


def costs(explained: Explained, canvas: Canvas) -> Figure:
    """A bar a class of tolls: what it adds to a step; the rest, which no single class explains, in grey."""
    unit, name = (1000, "ms") if explained.total_s < 1 else (1, "s")
    rows = sorted(explained.classes, key=lambda one: -one.cost_s)
    figure = canvas.figure(44 * (len(rows) + 1) + 50)
    axes = figure.add_subplot()
    canvas.style(axes)
    bars = [(one.name, one.cost_s, one.ci95, "emulated1") for one in rows]
    if explained.unexplained_s is not None:
        bars.append(("not explained", explained.unexplained_s, explained.unexplained_ci95, "muted"))
    for row, (label, seconds, ci95, colour) in enumerate(bars):
        axes.barh(row, seconds * unit, 0.4, color=canvas.colours[colour])
        if ci95:
            axes.plot([end * unit for end in ci95], [row] * 2, color=canvas.colours["ink"], linewidth=2)
        share = f", {seconds / explained.total_s:.0%}" if explained.total_s else ""
        text = f"{canvas.short(label.replace('_', ' '))}  {seconds * unit:,.2f} {name}{share}"
        axes.text(0, row - 0.26, text, color=canvas.colours["ink"], va="bottom")
    axes.axvline(0, color=canvas.colours["muted"], linewidth=1)
    axes.set_ylim(len(bars) - 0.6, -0.75)
    axes.set_yticks([])
    axes.set_xlabel(f"added to a step, {name}")
    return figure
