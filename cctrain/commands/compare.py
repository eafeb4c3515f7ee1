"""The verb compare: what CC costs, from the records of runs, with an interval and a verdict.

    python -m cctrain compare runs                             every run under runs/, grouped by recipe and mode
    python -m cctrain compare RUN RUN RUN RUN                  these: run directories or run.json files
    python -m cctrain compare runs --by step                   stock and graphed steps side by side
    python -m cctrain compare runs --by step --by engine       and both engines
    python -m cctrain compare runs --leave-out status          without those that did not end
    python -m cctrain compare runs --min-keep 0.9              a gate: exit 1 where less is kept
    python -m cctrain compare runs --html report.html --png figures
    python -m cctrain compare runs --track wandb               a W&B run with the verdicts and figures (WANDB_PROJECT)

CC on is held against CC off, an emulated run against its own plain steps. The replicate is the run: with one pair
there is a ratio and no interval. Verdicts: costs, gains (the 95 % interval excludes 1), free (it lies within 1 +- the
margin), unclear. What is not alike in `identity`, not whole, not steady or of unknown mode is refused, by its name.

A table, and as the last line of stdout one JSON object (not with --markdown). Exit code: 0 compared, 1 less is kept
than --min-keep, 2 refused.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cctrain import ratios, rundir
from cctrain.commands.flags import Parser
from cctrain.comparison.comparable import OF_ONE_RUN, RefusedError
from cctrain.comparison.compare import Answer, compare
from cctrain.comparison.groups import FIELDS, Options
from cctrain.errors import RequestError
from cctrain.load import read_runs
from cctrain.nearest import did_you_mean
from cctrain.records import finite
from cctrain.report import ratios_table, words
from cctrain.sinks.tracking import check_sinks


def run(arguments: list[str]) -> int:
    """Read, compare, write, print. Returns the exit code."""
    try:
        flags = _parse(arguments)
        options = Options(
            by=tuple(flags.by),
            allow=tuple(flags.allow),
            leave_out=tuple(flags.leave_out),
            margin=flags.margin,
            against_off_runs=flags.against_off_runs,
        )
        answer = compare(read_runs(flags.runs), options)
        written = _write(answer, flags)
    except RequestError as error:
        print(f"cctrain: {error}", file=sys.stderr)
        if "--markdown" not in arguments:
            print(json.dumps(_refusal(error)))
        return error.exit_code
    return _say(answer, written, flags)


def _refusal(error: RequestError) -> dict[str, Any]:
    why = list(error.why) if isinstance(error, RefusedError) else [str(error)]
    nothing = {"keep_ratio": None, "ci95": None, "verdict": None, "num_runs": None}
    return {**nothing, "why": why, "error": str(error), "exit_code": error.exit_code}


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser("compare", __doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run.json, a run directory, or one of those")
    parser.add_argument(
        "--by", action="append", default=[], metavar="FIELD", help=f"tell apart by {', '.join(FIELDS)}; may be repeated"
    )
    parser.add_argument("--allow", action="append", default=[], metavar="FIELD", help="let it differ; may be repeated")
    parser.add_argument(
        "--leave-out",
        action="append",
        default=[],
        choices=OF_ONE_RUN,
        metavar="FIELD",
        help=f"leave out runs for their {', '.join(OF_ONE_RUN)}, and say which; may be repeated",
    )
    parser.add_argument("--min-keep", type=float, metavar="RATIO", help="exit 1 where a keep ratio is below")
    parser.add_argument("--margin", type=float, default=ratios.MARGIN, help="what counts as free (%(default)s)")
    parser.add_argument(
        "--against-off-runs", action="store_true", help="hold emulated runs against runs with CC off instead"
    )
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--json", action="store_true", help="print the JSON line only")
    shape.add_argument("--markdown", action="store_true", help="print Markdown only")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a report that needs nothing else")
    parser.add_argument("--png", type=Path, metavar="DIR", help="write the figures, fit for a slide")
    parser.add_argument("--track", choices=("wandb",), help="show it there too; offline without a login")
    flags = parser.parse_args(arguments)
    if flags.track:
        check_sinks([flags.track])
    for name in flags.by:
        if name not in FIELDS:
            raise RequestError(f"--by {name}: allowed is {', '.join(FIELDS)}.{did_you_mean(name, FIELDS)}")
    if not 0 < flags.margin < 0.5:
        raise RequestError(f"--margin {flags.margin:g}: allowed is a share above 0 and below 0.5, as in 0.01")
    if flags.min_keep is not None and not 0 < flags.min_keep <= 10:
        raise RequestError(f"--min-keep {flags.min_keep:g}: allowed is a ratio above 0 and up to 10, as in 0.9")
    _check_writable(flags.html, flags.png)
    return flags


def _check_writable(html: Path | None, png: Path | None) -> None:
    if html and (html.is_dir() or not html.parent.is_dir() or not os.access(html.parent, os.W_OK)):
        raise RequestError(f"--html {html}: no file can be written there")
    if png:
        try:
            png.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RequestError(f"--png {png}: no directory can be made there ({error.strerror})") from error


def _write(answer: Answer, flags: argparse.Namespace) -> dict[str, str | list[str] | None]:
    """The report and the figures; where they went."""
    figures = []
    try:
        if flags.html:
            from cctrain.report import html

            rundir.write_text(flags.html, html.page(answer))
        if flags.png:
            from cctrain.report import plots

            figures = [str(path) for path in plots.write_pngs(answer, flags.png)]
    except OSError as error:
        raise RequestError(f"the report cannot be written ({error})") from error
    return {"html": str(flags.html) if flags.html else None, "png": figures}


def _say(answer: Answer, written: Mapping[str, Any], flags: argparse.Namespace) -> int:
    is_kept, texts = (True, []) if flags.min_keep is None else words.gate(answer, flags.min_keep)
    if flags.markdown:
        print(ratios_table.markdown(answer))
    elif not flags.json:
        ratios_table.print_answer(answer)
    for text in texts:
        print(f"note: {text}", file=sys.stderr)
    exit_code = 0 if is_kept else 1
    facts = finite({**ratios_table.facts(answer, flags.min_keep), **written, "exit_code": exit_code})
    if flags.track:
        _track(answer, facts)
    if not flags.markdown:
        print(json.dumps(facts, allow_nan=False))
    return exit_code


def _track(answer: Answer, facts: Mapping[str, Any]) -> None:
    from cctrain.report import plots
    from cctrain.sinks.compared import track_comparison

    with tempfile.TemporaryDirectory(prefix="cctrain-figures-") as folder:
        figures = plots.write_pngs(answer, Path(folder))
        track_comparison(facts, figures, lambda text: print(text, file=sys.stderr))
