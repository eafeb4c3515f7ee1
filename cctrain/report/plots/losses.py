"""Curves of loss along the one size that runs were told apart by: tokens a micro-batch, the model, or the layout."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from matplotlib.figure import Figure

from cctrain.comparison.arms import Arm
from cctrain.comparison.compare import Answer
from cctrain.comparison.groups import facts_of, setting_of
from cctrain.load import Run
from cctrain.report.plots.canvas import Canvas

_PALETTE = ("on", "off", "emulated1", "emulated2", "emulated3", "phase4", "muted")
_MARKERS, _MARK, _LETTER = ("o", "s", "^"), 6, 0.6
"""Marks of a first, a second and a third round of colours; what one takes in a legend with the space between columns,
in letters; a letter's width, of the font's size."""
_SIZE = re.compile(r"[-_]?\d+(?:\.\d+)?b(?![a-z0-9])")
"""Of a model, in a recipe's name: llama8b_peft."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """What curves go along."""

    field: str
    """Of `comparison.groups.FIELDS`."""
    name: str
    """Of the figure's file."""
    what: str
    label: str
    """Of the axis."""
    why: str
    place: Callable[[Arm], float]
    """Above 0; NaN where the record does not say."""
    tick: Callable[[Arm, float], str]


def _micro_batches(run: Run) -> float:
    """Of a step; 1 where the record does not tell."""
    batch, num_ranks = facts_of(run, "batch"), facts_of(run, "layout").get("data", 1)
    named = (batch.get("global_batch_size"), batch.get("local_batch_size"), num_ranks)
    sizes = [size for size in named if isinstance(size, int) and size > 0]
    return max(1.0, sizes[0] / (sizes[1] * sizes[2])) if len(sizes) == len(named) else 1.0


def _tokens(arm: Arm) -> float:
    return arm.tokens_per_step / arm.run.num_gpus / _micro_batches(arm.run)


def _tensor(arm: Arm) -> float:
    width = facts_of(arm.run, "layout").get("tensor")
    return float(width) if isinstance(width, int) and width > 0 else math.nan


_BY_TOKENS = Sweep(
    "sequence",
    "tokens",
    "tokens a micro-batch",
    "padded tokens a micro-batch and GPU",
    "A micro-batch of more tokens hides what the host pays per launch.",
    _tokens,
    lambda _, place: f"{place:,.0f}",
)
_SWEEPS = {
    "model": Sweep(
        "model",
        "model",
        "the model's size",
        "model, by its GFLOP a token",
        "A wider model has more work a launch.",
        lambda arm: float(f"{arm.flops_per_token / 1e9:.2g}"),  # rows of other lengths differ in the third digit
        lambda arm, place: "\n".join([*setting_of(arm.run, "model").split(", "), f"{place:g}"]),
    ),
    "batch": _BY_TOKENS,
    "sequence": _BY_TOKENS,
    "layout": Sweep(
        "layout",
        "layout",
        "the width of tensor parallelism",
        "GPUs that share a layer (tensor parallelism)",
        "Where more GPUs share a layer, each has less work a launch, and collectives are added.",
        _tensor,
        lambda _, place: f"{place:,.0f}",
    ),
}
"""By the field that is told apart; of several the first of these."""


def sweep_of(answer: Answer) -> Sweep:
    """What the curves of these comparisons go along: lengths, where nothing else is told apart."""
    return next((sweep for field, sweep in _SWEEPS.items() if field in answer.options.by), _BY_TOKENS)


@dataclass(frozen=True, slots=True)
class _Point:
    place: float
    loss: float
    ci95: tuple[float, float] | None
    within_run_ci95: tuple[float, float] | None
    tick: str


def _lines(answer: Answer) -> dict[str, list[_Point]]:
    """By recipe, mode and whatever else is told apart, but for what a line goes along: batches, else lengths, of
    micro-batches; recipes whose names differ in the model's size alone are one line along models."""
    by, lines, sweep = answer.options.by, dict[str, list[_Point]](), sweep_of(answer)
    swept = "batch" if "batch" in by and sweep is _BY_TOKENS else sweep.field
    for one in answer.comparisons:
        arm = one.other_arms[0]
        place = sweep.place(arm)
        if one.is_of_cc and place > 0:
            other = one.other if one.other.startswith("emulated") else f"CC {one.other}"
            recipe = _SIZE.sub("", one.recipe) if swept == "model" else one.recipe
            settings = [setting_of(arm.run, name) for name in by if name not in (swept, "tolls")]
            point = _Point(place, 1 - one.keep_ratio, one.ci95, one.within_run_ci95, sweep.tick(arm, place))
            lines.setdefault(", ".join([recipe, *settings, other]), []).append(point)
    return {name: sorted(points, key=lambda point: point.place) for name, points in lines.items()}


def has_lines(answer: Answer) -> bool:
    """Whether any line has two places: a point alone shows nothing."""
    return any(len({point.place for point in points}) > 1 for points in _lines(answer).values())


def title(answer: Answer) -> str:
    """What goes along what, and of what all lines are."""
    common = ", ".join(_common(list(_lines(answer))))
    return f"Loss against {sweep_of(answer).what}" + (f": {common}" if common else "")


def caption(answer: Answer) -> str:
    """What is drawn, and why it should fall or rise."""
    points = [point for line in _lines(answer).values() for point in line]
    bare = [point for point in points if point.ci95 is None]
    said = ["Bars are 95 % intervals over runs."] if len(bare) < len(points) else []
    if any(point.within_run_ci95 for point in bare):
        said.append("Thin bars are from the noise within a single run; runs differ by more than that.")
    elif bare:
        said.append("Points without a bar are of single runs, which have no interval.")
    said.append(sweep_of(answer).why)
    if any(one.is_emulated for one in answer.comparisons):
        said.append("Emulated is not measured under CC.")
    return " ".join(said)


def losses(answer: Answer, canvas: Canvas) -> Figure:
    """Loss of each line's points."""
    sweep, lines = sweep_of(answer), _lines(answer)
    common, room = _common(list(lines)), int(0.9 * canvas.width / (_LETTER * canvas.font))
    names = {name: canvas.short(_without(name, common), room - _MARK) for name in lines}
    columns = min(3, max(1, room // (max(map(len, names.values())) + _MARK)))
    figure = canvas.figure(280 + 1.6 * canvas.font * -(-len(lines) // columns))
    axes = figure.add_subplot()
    canvas.style(axes, grid="both")
    axes.axhline(0, color=canvas.colours["free"], linewidth=1.5)
    for index, (name, points) in enumerate(lines.items()):
        colour, marker = canvas.colours[_PALETTE[index % len(_PALETTE)]], _MARKERS[index // len(_PALETTE) % 3]
        places, lost = [point.place for point in points], [point.loss * 100 for point in points]
        axes.plot(places, lost, color=colour, marker=marker, markersize=7, linewidth=2, label=names[name])
        for point in points:
            if interval := point.ci95 or point.within_run_ci95:
                ends = [100 - 100 * end for end in interval]
                axes.plot([point.place] * 2, ends, color=colour, linewidth=4 if point.ci95 else 1, alpha=0.4)
    axes.set_xscale("log", base=2)
    ticks = {point.place: point.tick for points in lines.values() for point in points}
    axes.set_xticks(*_apart(sorted(ticks.items()), canvas))
    axes.minorticks_off()
    axes.set_xlabel(sweep.label)
    axes.set_ylabel("loss of throughput, %")
    canvas.legend(axes, columns)
    return figure


def _common(names: list[str]) -> list[str]:
    """What is in the names of all lines, if anything else is left of each."""
    first, *others = (name.split(", ") for name in names)
    common = [part for part in first if all(part in other for other in others)]
    return common if others and all(_without(name, common) for name in names) else []


def _without(name: str, common: list[str]) -> str:
    return ", ".join(part for part in name.split(", ") if part not in common)


def _apart(ticks: list[tuple[float, str]], canvas: Canvas) -> tuple[list[float], list[str]]:
    """Places, and the labels of those that have room beside the one before."""
    least, most = math.log(ticks[0][0]), math.log(ticks[-1][0])
    pixels = 0.85 * canvas.width / (most - least or 1)
    labels, ends = [], -math.inf
    for place, label in ticks:
        middle, half = (math.log(place) - least) * pixels, max(map(len, label.split("\n"))) * _LETTER * canvas.font / 2
        is_free = middle - half > ends
        labels.append(label if is_free else "")
        ends = middle + half if is_free else ends
    return [place for place, _ in ticks], labels
