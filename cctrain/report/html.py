"""The comparison as one HTML file that needs nothing else: no network, no script; light, dark, phone, paper.

Whatever comes from a record is escaped where it is put in, and nowhere else: by markup.py and by matplotlib itself.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence

from cctrain.comparison.compare import Answer, Comparison
from cctrain.emulation.profile import ASSUMED, NOT_EMULATED
from cctrain.load import Run
from cctrain.report import markup, tolls_beside, words
from cctrain.report.explained import explained, what_shows
from cctrain.report.markup import figure as _figure
from cctrain.report.markup import table as _table
from cctrain.report.markup import text as _text
from cctrain.report.panels import by_title, sides
from cctrain.report.platforms import platforms
from cctrain.report.plots import Picture, pictures
from cctrain.report.plots.shares import phase_means
from cctrain.report.ratios_table import COLUMNS, rows_by_title

_MOST_CARDS, _MOST_COMMANDS, _MOST_RECIPES = 12, 40, 20


def page(answer: Answer) -> str:
    """The whole file."""
    drawn = pictures(answer)
    return markup.page(
        "compare",
        title=_text(words.first_line(answer)),
        about=_text(_about(answer)),
        cards="".join(_card(one, answer.options.margin) for one in answer.comparisons[:_MOST_CARDS]),
        allowed=_allowed(answer),
        ratios=_ratios(answer),
        overview="".join(map(_figure, drawn[""])),
        recipes=_recipes(answer, drawn),
        emulated=_emulated(answer),
        platform=_platform(answer),
        commands=_commands(answer.runs),
        margin=_text(words.percent(answer.options.margin)),
    )


def _about(answer: Answer) -> str:
    held = {arm.run.run_id for one in answer.comparisons for arm in (*one.base_arms, *one.other_arms)}
    runs = [run for run in answer.runs if run.run_id in held]
    num_others = len(answer.runs) - len(runs)
    times = sorted(run.started_at for run in runs if run.started_at)
    when = f", started {times[0]:%Y-%m-%d %H:%M} to {times[-1]:%Y-%m-%d %H:%M}" if times else ""
    gpus = sorted({str(name) for run in runs for name in _as_list(run.identity.get("gpu"))})
    num = len(answer.comparisons)
    compared = f"{num} comparison{'s' * (num > 1)} of {len(runs)} run{'s' * (len(runs) > 1)}"
    others = f"; {num_others} other{'s' * (num_others > 1)} in no comparison" if num_others else ""
    return f"{compared} on {', '.join(gpus) or 'unknown GPUs'}{when}{others}"


def _as_list(node: object) -> Iterable[object]:
    return node if isinstance(node, list) else [node] if node else []


def _card(one: Comparison, margin: float) -> str:
    remarks = "".join(f"<p class=remark>{_text(remark)}</p>" for remark in words.remarks(one, margin))
    chips = f'<span class="chip {one.verdict}">{one.verdict}</span>'
    chips += "<span class='chip emulated'>emulated, not measured under CC</span>" if one.is_emulated else ""
    number, interval = words.figures(one)
    kept = min(1.0, one.keep_ratio) * 100
    bar = f'<div class="bar {"dashed" if one.is_emulated else ""}"><i style="width:{kept:.1f}%"></i></div>'
    return (
        f'<article class="card {one.verdict}"><p class=of>{_text(words.title(one))}<br>{_text(words.what(one))}</p>'
        f"<p class=figures><b>{_text(number)}</b> <span>{_text(interval)}</span></p>{bar}<p class=chips>{chips}</p>"
        f"<p>{_text(words.sentence(one, margin))}</p>{remarks}</article>"
    )


def _allowed(answer: Answer) -> str:
    texts = [*words.allowed(answer), *answer.notes]
    if not texts:
        return ""
    items = "".join(f"<li>{_text(text)}</li>" for text in texts)
    return f"<aside class=warning><h2>To be borne in mind</h2><ul>{items}</ul></aside>"


def _ratios(answer: Answer) -> str:
    rows = [[name, *row] for name, group in rows_by_title(answer) for row in group]
    return _table(["recipe", *COLUMNS], rows)


def _recipes(answer: Answer, drawn: Mapping[str, list[Picture]]) -> str:
    groups = by_title(answer)
    left_out = list(groups)[_MOST_RECIPES:]
    parts = [_recipe(name, group, drawn[name]) for name, group in groups.items() if name not in left_out]
    if left_out:
        parts.append(f"<section><p>Without figures here: {_text(', '.join(left_out))}.</p></section>")
    return "".join(parts)


def _recipe(name: str, group: list[Comparison], drawn: list[Picture]) -> str:
    parts = [f"<section><h2>{_text(name)}</h2>"]
    for picture in drawn:
        parts.append(_figure(picture))
        if picture.name.startswith("phases"):
            parts.append(f"<details><summary>The phases as numbers</summary>{_phases(group)}</details>")
        if picture.name.startswith("explain"):
            parts.append(_explained(group))
    if seed := words.seed_of(group[0]):
        own = "; ".join(
            ", ".join(
                filter(None, (f"{words.what(one)}: {words.percent(1 - one.keep_ratio)} lost", words.beside_seed(one)))
            )
            for one in group
            if one.is_of_cc
        )
        parts.append(
            f"<p>The seed post lost {words.percent(seed[1])} with this recipe on {_text(seed[0])} (one run a mode, so "
            f"without an interval). Here: {_text(own)}.</p>"
        )
    return "".join([*parts, "</section>"])


def _phases(group: list[Comparison]) -> str:
    means = {side.name: phase_means(side) for side in sides(group)}
    names = dict.fromkeys(phase for each in means.values() for phase in each)
    rows = [[phase, *(f"{each.get(phase, 0) * 1e3:,.1f}" for each in means.values())] for phase in names]
    rows.append(["together", *(f"{sum(each.values()) * 1e3:,.1f}" for each in means.values())])
    return _table(["ms a step", *means], rows)


def _explained(group: list[Comparison]) -> str:
    found = explained(arm.run for one in group for arm in one.other_arms)
    if not found:
        return ""
    show = [
        [
            one.name,
            *(f"{part * 1e3:,.2f}" if part is not None else "" for part in (one.cost_s, one.alone_s, one.left_out_s)),
            f"{one.ci95[0] * 1e3:,.2f} to {one.ci95[1] * 1e3:,.2f}" if one.ci95 else "none",
        ]
        for one in found.classes
    ]
    bound = ""
    if found.host_bound_share is not None:
        shows = what_shows(found.host_bound_share, is_cpu=found.is_cpu)
        bound = f"<p>{_text(shows[0].upper() + shows[1:])}.</p>"
    return bound + _table(["class, ms a step", "costs", "paid alone", "saved if left out", "95 % interval"], show)


def _emulated(answer: Answer) -> str:
    profiles = tolls_beside.profiles(answer.runs)
    if not profiles:
        return ""
    assumed = "".join(f"<li>{_text(line)}</li>" for line in ASSUMED)
    missing = _text(", ".join(NOT_EMULATED))
    parts = [
        "<section><h2>What emulated means</h2><p>An ordinary GPU without CC ran with every toll of a profile injected: "
        f"an estimate, never a measurement of CC. Assumed:</p><ul>{assumed}</ul><p>Not emulated: {missing}.</p>"
    ]
    columns = ["toll (us, unless said)", "paid", "seed post, B300", "seed post, Hopper", "where it is from"]
    for name, content in profiles.items():
        notes = content.get("notes")
        listed = "".join(f"<li>{_text(note)}</li>" for note in notes) if isinstance(notes, list) else ""
        table = (
            _table(columns, tolls_beside.rows(content), "facts") if content else "<p>The record does not hold them.</p>"
        )
        parts.append(f"<h3>Tolls of the profile {_text(name)}</h3>{f'<ul>{listed}</ul>' if listed else ''}{table}")
    reading = "Its columns: CC off -> on, in us or GB/s; x: on over off; +: what CC adds."
    return "".join([*parts, f"<p class=remark>Seed post: {_text(words.SEED_POST)}. {_text(reading)}</p></section>"])


def _platform(answer: Answer) -> str:
    columns, rows = platforms(answer)
    unlike, partly, alike = ([row for row in rows if row.kind == kind] for kind in ("unlike", "partly", "alike"))
    parts = ["<section><h2>Machines</h2>"]
    if unlike:
        table = _table(["fact", *columns], [[row.name, *row.values] for row in unlike], "unlike")
        parts.append(f"<h3>What differs</h3>{table}")
    elif len(columns) > 1:
        parts.append("<p>Nothing that was recorded differs.</p>")
    if partly:
        table = _table(["fact", *columns], [[row.name, *row.values] for row in partly], "facts")
        parts.append(f"<details><summary>What is known of some only ({len(partly)})</summary>{table}</details>")
    if alike:
        table = _table(["fact", "all"], [[row.name, row.values[0]] for row in alike], "facts")
        parts.append(f"<details><summary>What is alike ({len(alike)} facts)</summary>{table}</details>")
    return "".join([*parts, "</section>"])


def _commands(runs: Sequence[Run]) -> str:
    by_command: dict[str, list[str]] = {}
    for run in runs:
        by_command.setdefault(shlex.join(run.command) or "not recorded", []).append(run.run_id)
    parts = []
    for command, names in list(by_command.items())[:_MOST_COMMANDS]:
        listed = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
        parts.append(f"<pre>{_text(command)}</pre><p class=remark>{_text(listed)}</p>")
    more = len(by_command) - _MOST_COMMANDS
    return "".join(parts) + (f"<p>and {more} further commands</p>" if more > 0 else "")
