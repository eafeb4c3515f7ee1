"""Keep ratios with their intervals, and loss against tokens a step."""

from __future__ import annotations

from matplotlib.figure import Figure

from cctrain.compare import Answer, Comparison
from cctrain.report import words
from cctrain.report.panels import by_title, sides
from cctrain.report.plots.canvas import Canvas

_ROW, _HEAD = 46, 30
_MARKERS = {"emulated": "s", "on": "o"}


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
            axes.text(0, y + 20, row, transform=axes.get_yaxis_transform(), color=colours["ink"], weight="bold")
            y += _HEAD
            continue
        name, value, label, interval, colour, marker, is_solid = row
        axes.text(0, y + 12, name, transform=axes.get_yaxis_transform(), color=colours["ink"], size=canvas.font - 0.5)
        axes.text(
            1, y + 12, label, transform=axes.get_yaxis_transform(), color=colours["ink"], ha="right", weight="bold"
        )
        line = colours[colour]
        if interval:
            axes.plot(interval, [y + 27] * 2, color=line, linewidth=5, alpha=0.45, linestyle="-" if is_solid else ":")
            lowest, highest = min(lowest, interval[0]), max(highest, interval[1])
        face = line if is_solid else colours["page"]
        axes.plot([value], [y + 27], marker=marker, color=line, markersize=9, markerfacecolor=face)
        lowest, highest = min(lowest, value), max(highest, value)
        y += _ROW
    space = 0.04 * (highest - lowest)
    labels = 9 * canvas.font / canvas.width  # the column of verdicts, as a share of the width
    axes.set_xlim(lowest - space, highest + space + (highest - lowest + 2 * space) * labels / (1 - labels))
    axes.set_ylim(y, 0)
    axes.set_yticks([])
    axes.set_xlabel("keep ratio: throughput kept, 1 is free")
    return figure


_Row = tuple[str, float, str, tuple[float, float] | None, str, str, bool]


def _rows(answer: Answer) -> list[str | _Row]:
    rows: list[str | _Row] = []
    for title, group in by_title(answer).items():
        rows.append(title)
        colours = {arm.label: side.colour for side in sides(group) for arm in side.arms}
        rows += [_row(one, colours[one.other_arms[0].label]) for one in group]
        seed = words.SEED_LOSSES.get(group[0].recipe)
        if seed and not words.is_of_settings(group[0]):
            rows.append((f"seed post, {seed[0]}", 1 - seed[1], f"{1 - seed[1]:.3f}", None, "muted", "D", True))
    return rows


def _row(one: Comparison, colour: str) -> _Row:
    interval = one.ci95 or one.within_run_ci95
    label = f"{one.keep_ratio:.3f}  {one.verdict}"
    return words.what(one), one.keep_ratio, label, interval, colour, _MARKERS.get(one.mode, "o"), bool(one.ci95)


def losses_by_tokens(answer: Answer, canvas: Canvas) -> Figure:
    """Loss of each recipe and mode against the tokens that a GPU has in a step."""
    figure = canvas.figure(300)
    axes = figure.add_subplot()
    canvas.style(axes, grid="both")
    lines = _lines(answer)
    palette = ["on", "off", "emulated1", "emulated2", "emulated3", "phase4", "muted"]
    axes.axhline(0, color=canvas.colours["free"], linewidth=1.5)
    for index, (name, points) in enumerate(lines.items()):
        colour = canvas.colours[palette[index % len(palette)]]
        tokens, losses = [point[0] for point in points], [point[1] * 100 for point in points]
        axes.plot(tokens, losses, color=colour, marker="o", markersize=7, linewidth=2, label=name)
        for token, _, ci95 in points:
            if ci95:
                axes.plot([token] * 2, [100 - 100 * end for end in ci95], color=colour, linewidth=4, alpha=0.4)
    axes.set_xscale("log", base=2)
    ticks = sorted({point[0] for points in lines.values() for point in points})
    axes.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("padded tokens a step and GPU")
    axes.set_ylabel("loss of throughput, %")
    figure.legend(loc="outside upper left", ncols=1 if canvas.is_narrow else 3, labelcolor=canvas.colours["ink"])
    return figure


_Point = tuple[float, float, tuple[float, float] | None]


def _lines(answer: Answer) -> dict[str, list[_Point]]:
    lines: dict[str, list[_Point]] = {}
    for one in answer.comparisons:
        if not words.is_of_settings(one) and one.base != "on":
            arm = one.other_arms[0]
            point = (arm.tokens_per_step / arm.run.num_gpus, 1 - one.keep_ratio, one.ci95)
            other = one.other if one.other.startswith("emulated") else f"CC {one.other}"
            lines.setdefault(f"{one.recipe}, {other}", []).append(point)
    return {name: sorted(points, key=lambda point: point[0]) for name, points in lines.items()}


def num_token_counts(answer: Answer) -> int:
    """How many different counts of tokens the losses are of: a line takes two."""
    return len({point[0] for points in _lines(answer).values() for point in points})
