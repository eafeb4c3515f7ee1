"""The figures of a comparison, drawn with matplotlib, which nothing else imports."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

from cctrain.compare import Answer
from cctrain.report import words
from cctrain.report.explained import explained
from cctrain.report.panels import by_title, sides
from cctrain.report.plots import keep, shares, steps
from cctrain.report.plots.canvas import NARROW, WIDE, Picture

__all__ = ["NARROW", "WIDE", "Picture", "pictures", "write_pngs"]


def pictures(answer: Answer) -> dict[str, list[Picture]]:
    """All figures, under the title of the comparisons that they are of; under "" those of all together."""
    worst = answer.worst
    title = f"{words.title(worst)}: {words.headline(worst)}"
    kept = "Points are ratios, bars 95 % intervals over runs; dotted: from the noise within the runs only. "
    kept += "The green band is what counts as free."
    shown = {"": [Picture("keep_ratio", title, kept, partial(keep.keep_ratios, answer))]}
    if keep.num_token_counts(answer) > 1:
        caption = "Bars are 95 % intervals. More tokens a step hide what the host pays per launch."
        draw = partial(keep.losses_by_tokens, answer)
        shown[""].append(Picture("loss_by_tokens", "Loss against tokens a step", caption, draw))
    for number, (name, group) in enumerate(by_title(answer).items()):
        file = f"{number}_{re.sub(r'[^A-Za-z0-9_.-]+', '_', name)[:60]}"
        caption = "Grey: warm-up, and what was set aside. Dashed: the level changed for good. Spikes are kept."
        found = [Picture(f"steps_{file}", f"{name}: step times", caption, partial(steps.traces, group))]
        caption = "Steady steps of all runs; a tick below is the median of one run, its replicate."
        draw = partial(steps.distributions, group)
        found.append(Picture(f"distribution_{file}", f"{name}: how long steps take", caption, draw))
        if any(shares.phase_means(side) for side in sides(group)):
            caption = "Mean of the steady steps, of the slowest rank."
            found.append(Picture(f"phases_{file}", f"{name}: phases of a step", caption, partial(shares.phases, group)))
        why = explained(arm.run for one in group for arm in one.other_arms)
        if why:
            caption = "Emulated: what each class of injected tolls adds to a step; lines are 95 % intervals."
            draw = partial(shares.costs, why)
            found.append(Picture(f"explain_{file}", f"{name}: where the loss comes from", caption, draw))
        shown[name] = found
    return shown


def write_pngs(answer: Answer, folder: Path) -> list[Path]:
    """Every figure as a slide in `folder`; returns their paths."""
    paths = []
    for picture in (one for group in pictures(answer).values() for one in group):
        path = folder / f"{picture.name}.png"
        picture.write_png(path)
        paths.append(path)
    return paths
