"""The comparisons as a table for the terminal, as Markdown, and as the facts of the JSON line."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cctrain.comparison.compare import Answer, Comparison
from cctrain.console import console_of
from cctrain.ratios import geometric_mean
from cctrain.report import words
from cctrain.report.panels import by_title

COLUMNS = ("held against each other", "kept", "95 % interval", "loss", "tokens/s/GPU", "runs", "verdict")
_WIDTH = 120
_STYLES = {"costs": "bold red", "free": "bold green", "gains": "bold green", "unclear": "bold yellow"}
_CAPTION = (
    "kept: throughput of the left over that of the right, of the runs' median padded tokens/s/GPU (between steps or "
    "engines: real ones; in an emulated run: of its pairs of blocks); 1 is free. The 95 % interval is over runs"
)


def print_answer(answer: Answer, console: Console | None = None) -> None:
    """A table and the verdict in a sentence; to stdout where no console is given."""
    console = console_of(console, _WIDTH)
    is_of_cc = any(one.is_of_cc for one in answer.comparisons)
    title = "What is kept of the throughput" if is_of_cc else "Throughput of the one over that of the other"
    table = Table(title=title, caption=". ".join(filter(None, (_CAPTION, words.note(answer.comparisons)))))
    for column in COLUMNS:
        table.add_column(column, justify="left" if column in (COLUMNS[0], "verdict") else "right", overflow="fold")
    for name, rows in rows_by_title(answer):
        table.add_section()
        table.add_row(Text(name, style="bold"))
        for row in rows:
            table.add_row(*row[:-1], Text(row[-1], style=_STYLES.get(row[-1], "dim")))
    console.print(table)
    for line in _lines(answer):
        console.print(line, soft_wrap=True)


def markdown(answer: Answer) -> str:
    """The same for a pull request; names of records are escaped."""
    lines = []
    for name, rows in rows_by_title(answer):
        lines += [f"**{_escaped(name)}**", "", f"| {' | '.join(COLUMNS)} |"]
        lines += ["|---|" + "---:|" * (len(COLUMNS) - 2) + "---|"]
        lines += [f"| {' | '.join(map(_escaped, row))} |" for row in rows]
        lines += [""]
    lines += [f"- {_escaped(line)}" for line in (*_lines(answer), words.note(answer.comparisons)) if line]
    return "\n".join(lines)


def facts(answer: Answer, min_keep: float | None = None) -> dict[str, Any]:
    """For scripts: the worst comparison's figures on top, and all of them below."""
    worst = answer.worst
    gate = None if min_keep is None else {"min_keep": min_keep, "is_passed": words.gate(answer, min_keep)[0]}
    return {
        "keep_ratio": worst.keep_ratio,
        "ci95": worst.ci95,
        "verdict": worst.verdict,
        "is_emulated": worst.is_emulated,
        "emulated": words.note(answer.comparisons),
        "num_runs": worst.num_runs,
        "why": words.sentence(worst, answer.options.margin),
        "gate": gate,
        "margin": answer.options.margin,
        "allowed": words.allowed(answer),
        "notes": answer.notes,
        "comparisons": [_facts_of(one, answer.options.margin) for one in answer.comparisons],
    }


def _facts_of(one: Comparison, margin: float) -> dict[str, Any]:
    return {
        "recipe": one.recipe,
        "setting": one.setting,
        "base": one.base,
        "other": one.other,
        "is_emulated": one.is_emulated,
        "keep_ratio": one.keep_ratio,
        "ci95": one.ci95,
        "loss": 1 - one.keep_ratio if one.is_of_cc else None,
        "verdict": one.verdict,
        "why": words.sentence(one, margin),
        "remarks": words.remarks(one, margin),
        "num_runs": one.num_runs,
        "pairing": one.pairing,
        "error_in_common": one.error_in_common,
        "within_run_ci95": one.within_run_ci95,
        "keep_ratio_of_means": one.keep_ratio_of_means,
        "more_runs": one.more and {"num": one.more.num, "spread": one.more.spread, "is_assumed": one.more.is_assumed},
        "tokens_per_step": statistics.median([arm.tokens_per_step for arm in one.base_arms]),
        "base_tokens_per_s_per_gpu": one.base_rates,
        "other_tokens_per_s_per_gpu": one.other_rates,
        "added_s": one.added_s,
        "base_runs": [arm.run.run_id for arm in one.base_arms],
        "other_runs": [arm.run.run_id for arm in one.other_arms],
    }


def rows_by_title(answer: Answer) -> Iterator[tuple[str, list[list[str]]]]:
    """Rows of COLUMNS by recipe and setting, with the seed post's own where the recipe is one of its."""
    for name, group in by_title(answer).items():
        rows = [_row(one) for one in group]
        if seed := words.seed_of(group[0]):
            hardware, loss = seed
            rows.append([f"seed post, {hardware}", f"{1 - loss:.3f}", "none", words.percent(loss), "", "", "published"])
        yield name, rows


def _row(one: Comparison) -> list[str]:
    interval = "none" if one.ci95 is None else f"{one.ci95[0]:.3f} to {one.ci95[1]:.3f}"
    rates = [geometric_mean(side)[0] for side in (one.base_rates, one.other_rates)]  # whose ratio is the one shown
    runs = f"{len(one.other_arms)} + {len(one.base_arms)}" if one.pairing != "same run" else f"{one.num_runs}"
    kept, loss = f"{one.keep_ratio:.3f}", words.percent(1 - one.keep_ratio) if one.is_of_cc else ""
    return [words.what(one), kept, interval, loss, f"{rates[0]:,.0f} -> {rates[1]:,.0f}", runs, one.verdict]


def _lines(answer: Answer) -> list[str]:
    """Sentences: of every comparison, of what was allowed, of what is left over."""
    margin, lines = answer.options.margin, []
    for one in answer.comparisons:
        parts = [
            f"{words.title(one)}: {words.headline(one)}.",
            words.sentence(one, margin),
            *words.remarks(one, margin),
            *([f"It {beside}."] if (beside := words.beside_seed(one)) else []),
        ]
        lines.append(" ".join(parts))
    return [*lines, *words.allowed(answer), *(f"note: {note}" for note in answer.notes)]


def _escaped(text: str) -> str:
    """Markdown and HTML in a record's name stay text."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{letter}" if letter in "|*`[]_\\" else letter for letter in text)
