"""What a search has seen: loss and real tokens/s/GPU against the tokens of a step, or of a micro-batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cctrain.report.plots.canvas import Canvas, Picture
from cctrain.tune.point import Observation, Point

_PALETTE = ("off", "emulated1", "emulated2", "emulated3", "on", "phase4", "phase3", "muted")
_TokensOf = Callable[[Observation], float]
_Marked = Sequence[Point | None]
"""The recipe as it stands, and what was found."""


def curves(
    seen: Sequence[Observation], base: Point, best: Observation | None, num_ranks: int, recipe: str
) -> list[Picture]:
    """A picture for each number of tokens of which two were tried; none where only one setting completed."""
    complete = _of_like_tokens([one for one in seen if one.is_complete])
    shown, same = [], ""
    for name, what, ranks in (("step", "a step and GPU", num_ranks), ("micro_batch", "a micro-batch", None)):
        line = partial(tokens, num_ranks=ranks)
        if len({round(line(one)) for one in complete}) < 2:
            same = f" All have {line(complete[0]):,.0f} real tokens {what}." if complete else ""
            continue
        has_loss = any(one.keep_ratio is not None for one in complete)
        title = f"{'Loss and tokens' if has_loss else 'Tokens'}/s against real tokens {what}"
        caption = "A point a trial, one run each. A ring is what was found, a square the recipe as it stands." + same
        caption += " Loss is that of throughput under emulated tolls, not measured under CC." * has_loss
        draw = partial(_curves, complete, [base, best.point if best else None], line, what)
        shown.append(Picture(f"by_{name}", title, caption, draw, f"{recipe}: {title[0].lower()}{title[1:]}"))
    return shown


def _of_like_tokens(seen: Sequence[Observation]) -> list[Observation]:
    """With the mean of their real tokens for all that train on the same rows: each counted its own span of steps."""
    counted: dict[tuple[int, int | None, int], list[float]] = {}
    for one in seen:
        counted.setdefault(_rows_of(one.point), []).append(one.real_tokens or 0.0)
    return [replace(one, real_tokens=fmean(counted[_rows_of(one.point)])) for one in seen]


def _rows_of(point: Point) -> tuple[int, int | None, int]:
    return point.global_batch, point.seq_len, point.packing


def tokens(one: Observation, num_ranks: int | None) -> float:
    """Real tokens of one rank's share of a step; without `num_ranks` those of a micro-batch."""
    real = one.real_tokens or 0.0
    return real / num_ranks if num_ranks else real / (one.point.data_ranks * one.point.accumulation)


def kind(point: Point) -> str:
    """What points of one line share."""
    parts = [point.step, "checkpointing" if point.is_checkpointing else ""]
    parts += [f"tp {point.tensor}" if point.tensor > 1 else "whole replicas" if point.is_replicated else ""]
    parts += [f"packed {point.packing}" if point.packing else f"{point.seq_len} tokens" if point.seq_len else ""]
    return ", ".join(part for part in parts if part)


def _curves(
    complete: Sequence[Observation], marked: _Marked, tokens_of: _TokensOf, what: str, canvas: Canvas
) -> Figure:
    lines: dict[str, list[Observation]] = {}
    for one in sorted(complete, key=lambda one: (kind(one.point), tokens_of(one))):
        lines.setdefault(kind(one.point), []).append(one)
    has_loss = any(one.keep_ratio is not None for one in complete)
    figure = canvas.figure(460 if has_loss else 300)
    panels = figure.subplots(1 + has_loss, 1, sharex=True, squeeze=False)[:, 0]
    if has_loss:
        _panel(panels[0], canvas, lines, tokens_of, marked, is_loss=True)
        panels[0].set_ylabel("loss of throughput, %")
    _panel(panels[-1], canvas, lines, tokens_of, marked, is_loss=False)
    panels[-1].set_ylabel("real tokens/s/GPU")
    panels[-1].set_xlabel(f"real tokens {what}")
    figure.align_ylabels(panels)
    canvas.legend(panels[0], 1 if canvas.is_narrow else 3)
    return figure


def _panel(
    axes: Axes,
    canvas: Canvas,
    lines: dict[str, list[Observation]],
    tokens_of: _TokensOf,
    marked: _Marked,
    *,
    is_loss: bool,
) -> None:
    base, best = marked
    canvas.style(axes, grid="both")
    for index, (name, line) in enumerate(lines.items()):
        colour = canvas.colours[_PALETTE[index % len(_PALETTE)]]
        known = [(tokens_of(one), _value(one, is_loss=is_loss), one.point) for one in line]
        points = [(x, y, point) for x, y, point in known if y is not None]
        x, y = [each[0] for each in points], [each[1] for each in points]
        axes.plot(x, y, color=colour, marker="o", markersize=6, linewidth=1.5, label=canvas.short(name))
        for marker, special, size in (("s", base, 11), ("o", best, 13)):
            at = [each[:2] for each in points if each[2] == special]
            for place in at:
                axes.plot(*place, marker=marker, markersize=size, markerfacecolor="none", color=canvas.colours["ink"])
    every = sorted({round(tokens_of(one)) for line in lines.values() for one in line})
    axes.set_xscale("log", base=2)
    axes.set_xticks(every, [f"{each:,.0f}" for each in every])
    axes.minorticks_off()
    low, high = axes.dataLim.intervaly
    space = 0.05 * (high - min(low, 0.0))  # a keep ratio may come out above 1, by noise
    axes.set_ylim(min(low, 0.0) - space, high + space)
    axes.yaxis.set_major_formatter("{x:,.0f}")


def _value(one: Observation, *, is_loss: bool) -> float | None:
    if not is_loss:
        return one.rate
    return None if one.keep_ratio is None else 100 * (1 - one.keep_ratio)
