"""The figures of a comparison, drawn with matplotlib, which nothing else imports."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from cctrain.comparison.compare import Answer, Comparison
from cctrain.report import words
from cctrain.report.explained import explained
from cctrain.report.panels import by_title, sides
from cctrain.report.plots import keep, losses, shares, steps
from cctrain.report.plots.canvas import NARROW, WIDE, Canvas, Picture

__all__ = ["NARROW", "WIDE", "Picture", "pictures", "write_pngs"]


def pictures(answer: Answer) -> dict[str, list[Picture]]:
    """All figures, under the title of the comparisons that they are of; under "" those of all together."""
    is_of_cc = any(one.is_of_cc for one in answer.comparisons)
    kept = "Points are ratios, bars 95 % intervals over runs; dotted: from the noise within the runs only. "
    kept += "The green band is what counts as free." if is_of_cc else "In the green band is no difference."
    kept += " Squares are emulated, not measured under CC." * any(one.is_emulated for one in answer.comparisons)
    heading, draw = "Throughput kept" if is_of_cc else "Throughput", partial(keep.keep_ratios, answer)
    shown = {"": [Picture("keep_ratio", heading, kept, draw, words.first_line(answer), words.note(answer.comparisons))]}
    if losses.has_lines(answer):
        name, draw_losses = f"loss_by_{losses.sweep_of(answer).name}", partial(losses.losses, answer)
        note = words.note(answer.comparisons)
        shown[""].append(Picture(name, losses.title(answer), losses.caption(answer), draw_losses, slide_note=note))
    for number, (name, group) in enumerate(by_title(answer).items()):
        file = f"{number}_{re.sub(r'[^A-Za-z0-9_.-]+', '_', name)[:60]}"
        shown[name] = [
            Picture(f"{kind}_{file}", text, caption, draw, f"{name}: {text[0].lower()}{text[1:]}", words.note(group))
            for kind, text, caption, draw in _of_recipe(group)
        ]
    return shown


def _of_recipe(group: list[Comparison]) -> Iterator[tuple[str, str, str, Callable[[Canvas], Figure]]]:
    """Kind, title, caption and drawing of each figure."""
    caption = "Grey: warm-up, and what was set aside. Dashed: the level changed for good. Spikes are kept."
    yield "steps", "Step times", caption, partial(steps.traces, group)
    caption = "Steady steps of all runs; a tick below is the median of one run."
    yield "distribution", "How long steps take", caption, partial(steps.distributions, group)
    if any(shares.phase_means(side) for side in sides(group)):
        caption = "Mean of the steady steps, of the slowest rank."
        yield "phases", "Phases of a step", caption, partial(shares.phases, group)
    runs = {arm.run.run_id: arm.run for one in group for arm in one.other_arms}
    why = explained(runs.values())
    if why:
        profile = runs[why.run_id].profile
        caption = f"Emulated: what each class of the tolls of {profile} adds to a step; lines are 95 % intervals."
        yield "explain", "Where the loss comes from", caption, partial(shares.costs, why)


def write_pngs(answer: Answer, folder: Path) -> list[Path]:
    """Every figure as a slide in `folder`; returns their paths."""
    paths = []
    for picture in (one for group in pictures(answer).values() for one in group):
        path = folder / f"{picture.name}.png"
        picture.write_png(path)
        paths.append(path)
    return paths
