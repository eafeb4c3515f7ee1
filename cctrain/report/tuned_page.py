"""What a search leaves on disk: one HTML file that needs nothing else, and its curves as PNG."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path

from cctrain import rundir
from cctrain.report import markup, tuned
from cctrain.report.markup import figure, table, text
from cctrain.report.plots.canvas import Picture
from cctrain.report.plots.tuned import curves
from cctrain.report.tuned import Answer


def write(answer: Answer, folder: Path) -> tuple[Path, list[Path]]:
    """`tune-RECIPE.html` and a PNG a curve, in `folder`; where they went. Raises OSError where they cannot."""
    name = "tune-" + re.sub(r"[^\w.-]+", "_", answer.recipe)[:64]
    folder.mkdir(parents=True, exist_ok=True)
    problem, result = answer.problem, answer.result
    note = tuned.note(result.seen, is_cpu=tuned.is_of_cpu(answer))
    drawn = curves(result.seen, problem.base, result.best, problem.num_ranks, answer.recipe)
    pictures = [replace(picture, slide_note=note) for picture in drawn]
    pngs = [folder / f"{name}-{picture.name}.png" for picture in pictures]
    for picture, path in zip(pictures, pngs, strict=True):
        picture.write_png(path)
    html = folder / f"{name}.html"
    rundir.write_text(html, page(answer, pictures))
    return html, pngs


def page(answer: Answer, pictures: list[Picture]) -> str:
    """The whole file."""
    emulated = tuned.note(answer.result.seen)
    return markup.page(
        "tune",
        title=text(f"{answer.recipe}: {_headline(answer)}"),
        about=text(f"{len(answer.result.seen)} trials of {len(answer.problem.points)} settings, CC {answer.mode}"),
        emulated=f"<aside class=warning><p>{text(emulated)}.</p></aside>" if emulated else "",
        found="".join(f"<p>{text(line)}</p>" for line in tuned.sentences(answer)),
        command=f"<pre>{text(answer.command)}</pre>" if answer.chosen is not None else "",
        figures="".join(map(figure, pictures)),
        trials=table(*tuned.trials(answer.problem, answer.result.seen, answer.result.best), "trials"),
        why=text(answer.result.why),
        base=text(shlex.join(answer.arguments)),
    )


def _headline(answer: Answer) -> str:
    best, gain = answer.result.best, answer.gain
    if best is None:
        return "no setting meets the limits"
    if not answer.chosen:
        return tuned.fastest(answer)
    rate = f"{best.rate:,.0f} real tokens/s/GPU"
    if answer.is_gain_unclear:
        return f"{rate}, unclear whether more than as it stands"
    return f"{rate}, {gain[0]:.2f} times as many" if gain else rate
