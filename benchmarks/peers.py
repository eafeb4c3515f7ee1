"""Who is first: AutoModel, Hugging Face's Trainer, others, and cctrain's own step, side by side on one machine.

Background: whoever chooses a way to fine-tune under confidential computing chooses among the lines below. Each is a
list of overrides of the same command, `python -m cctrain`, and so the same model, adapters, token stream, batch and
timer; a line is one run with `cc=emulated`, whose plain and tolled steps take turns in one process. Lines take turns
too, a process each: all of them once, then all again in the opposite order, so that a drift of the machine is nobody's.
Libraries that train no recipe of AutoModel (`others/`) do the same under `cctrain emulate`; the recipe's loader writes
its rows and labels to a file for them (`peers_rows.py`).

    python benchmarks/peers.py DIR                        everything that is not in DIR yet, an hour and more
    python benchmarks/peers.py DIR --budget-s 540         as much of it as fits into nine minutes; until num_left is 0
    python benchmarks/peers.py DIR --shapes 4x256 --tasks lora --lines ours AutoModel --repeats 1
    python benchmarks/peers.py DIR --lines ours "Trainer + PEFT + Liger"      names with blanks are quoted
    python benchmarks/peers.py DIR --tasks lora=tiny_llama_peft --shapes 2x32 --steps 32      on a CPU
    python benchmarks/peers.py DIR --line "mine: +train.optimizer.fused=true"                 a further line
    python benchmarks/peers.py DIR --others OTHERS/others.json          with those that others/install.py could install
    python benchmarks/peers.py DIR --only-repeat 2        of three, the second: each may be of another machine
    python benchmarks/peers.py DIR --together 3           three at a time are made ready, and measured one by one
    python benchmarks/peers.py DIR --budget-s 0           the table of what is there

A cell, one line at one shape once, has a deadline; what became of it, the error of one that failed included, is a file
under DIR/cells, and what is there is not run again (`--again` runs those that failed). After a kill the same command
goes on; what a SIGKILL of this one leaves stopped of --together has to be ended by hand. The lines come in the order of
--lines, so that a short budget has the first of them at every shape.
DIR/results.json and the last line of stdout hold the figures: tokens/s/GPU of each line with a 95 % interval over the
repeats, off and tolled, the share of the floor (the model's FLOPs at the rate of this machine's large matrix products),
how much faster ours is, and what failed; the last line also which lines this call does not run and why, and what it
leaves missing. The exit code is 1 where all runs of a call failed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import peers_table
from peers_lines import LINES, OURS, SHAPES, TASKS, Cell, shape_overrides, why_not
from peers_run import run
from peers_turns import READY_STEPS, Turn, side_by_side

from cctrain.emulation.profile import load_profile
from cctrain.errors import RequestError
from cctrain.platform import gpu
from cctrain.processes import take_stops_as_ctrl_c
from cctrain.request.compose import compose_config
from cctrain.rundir import write_json
from cctrain.tolls.record import read_tolls

_SETTINGS = ("tolls", "warmup", "steps", "blocks")
_SETTINGS_FILE = "settings.json"


def plan(flags: argparse.Namespace) -> Iterator[Cell]:
    """Every cell, in the order in which they are run."""
    for repeat in [flags.only_repeat - 1] if flags.only_repeat else range(flags.repeats):
        names = list(flags.lines) if repeat % 2 == 0 else list(flags.lines)[::-1]
        for task in flags.tasks:
            for shape in flags.shapes:
                for line in names:
                    if why_not(line, shape, flags) is None:
                        yield Cell(task, shape, line, repeat)


def not_run(flags: argparse.Namespace) -> list[dict[str, str]]:
    """The lines that are not run, with the shapes at which they are not, and why."""
    found = [(line, shape, why_not(line, shape, flags)) for line in flags.lines for shape in flags.shapes]
    return [{"line": line, "shape": shape, "why": why} for line, shape, why in found if why]


def matmul_tflops(flags: argparse.Namespace) -> float | None:
    """The rate of this machine's large bf16 matrix products, measured once; None without a GPU, and where nothing is
    to be run."""
    if flags.matmul_tflops:
        return float(flags.matmul_tflops)
    path = flags.folder / "matmul.json"
    if not path.exists() and flags.budget_s != 0:
        measure = [sys.executable, "-m", "cctrain", "tolls", "--only", "matmul", "--out", str(path)]
        subprocess.run(measure, check=False, capture_output=True)
    readings = read_tolls(path).readings if path.exists() else ()
    return next((reading.value for reading in readings if reading.name == "matmul"), None)


def _named(pairs: Sequence[str], parser: argparse.ArgumentParser) -> dict[str, str]:
    """`lora` and `lora=tiny_llama_peft` to names and recipes."""
    found = {}
    for name, _, recipe in (pair.partition("=") for pair in pairs):
        if not name or not (recipe or name in TASKS):
            parser.error(f"--tasks {name}: allowed is {', '.join(TASKS)}, or NAME=RECIPE")
        found[name] = recipe or TASKS[name]
    return found


def parse() -> argparse.Namespace:
    """The command line, with tasks and lines as dictionaries."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where everything goes, and what is there is not run again")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), metavar="NAME[=RECIPE]")
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES))
    parser.add_argument("--lines", nargs="+", default=list(LINES), metavar="NAME", help="; ".join(LINES))
    parser.add_argument("--line", action="append", default=[], metavar="NAME: OVERRIDE ...", help="a further line")
    parser.add_argument("--others", type=Path, metavar="FILE", help="of others/install.py: what it could install")
    parser.add_argument("--ours", default=OURS, metavar="NAME", help="the line that the others are held against")
    parser.add_argument("--tolls", default="b300")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only-repeat", type=int, metavar="N", help="from 1; DIR can go on to another machine then")
    parser.add_argument("--warmup", type=int, default=15)
    parser.add_argument("--steps", type=int, default=96)
    parser.add_argument("--blocks", type=int, default=4, help="pairs of blocks of plain and tolled steps")
    parser.add_argument("--cell-s", type=float, default=420.0, help="the deadline of one run")
    parser.add_argument("--together", type=int, default=1, metavar="N", help="so many that the GPU's memory holds")
    parser.add_argument("--budget-s", type=float, help="start no run that may end later than that")
    parser.add_argument("--matmul-tflops", type=float, help="the floor's rate, where it is known")
    parser.add_argument("--again", action="store_true", help="run again what failed")
    folder = parser.parse_args().folder
    if folder.exists() and not folder.is_dir():
        parser.error(f"{folder} is a file; allowed is a directory, new or of earlier runs")
    begun = _settings(folder)
    if begun:  # what is not said is as the folder was begun
        recipes = {name.removeprefix("tasks "): recipe for name, recipe in begun.items() if name not in _SETTINGS}
        tasks = [f"{task}={recipe}" for task, recipe in recipes.items()]
        parser.set_defaults(tasks=tasks, **{name: begun[name] for name in _SETTINGS})
    flags = parser.parse_args()
    flags.folder = flags.folder.resolve()
    flags.tasks = _named(flags.tasks, parser)
    for recipe, shape in itertools.product(flags.tasks.values(), flags.shapes):
        try:
            compose_config([f"recipe={recipe}", "weights=random", *shape_overrides(shape)])
        except RequestError as error:
            parser.error(f"--tasks, --shapes: {error}")
    further = dict(_further(line, parser) for line in flags.line)
    known = LINES | further
    for name in flags.lines:
        if name not in known:
            parser.error(f"--lines {name}: allowed is {'; '.join(known)}; a new one is --line 'NAME: OVERRIDES'")
    flags.lines = {name: known[name] for name in flags.lines} | further
    _check(flags, parser)
    if flags.others:
        flags.others = _others(flags.others, parser)
    return flags


def _check(flags: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Numbers, and then names."""
    for name, least in (("repeats", 1), ("steps", 1), ("blocks", 1), ("warmup", 0), ("together", 1)):
        if getattr(flags, name) < least:
            parser.error(f"--{name} {getattr(flags, name)}: allowed is {least} or more")
    for name, bound in (("cell_s", 1.0), ("budget_s", 0.0), ("matmul_tflops", 1e-3)):
        value = getattr(flags, name)
        if value is not None and not bound <= value < math.inf:
            parser.error(f"--{name.replace('_', '-')} {value}: allowed is {bound:g} or more")
    if flags.together > 1 and flags.warmup <= READY_STEPS:
        parser.error(
            f"--warmup {flags.warmup}: allowed with --together is more than {READY_STEPS}, within which runs wait"
        )
    _check_names(flags, parser)


def _check_names(flags: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """The profile, and what has to be among others."""
    try:
        load_profile(flags.tolls)
    except RequestError as error:
        parser.error(f"--tolls: {error}")
    if flags.only_repeat is not None and not 1 <= flags.only_repeat <= flags.repeats:
        parser.error(f"--only-repeat {flags.only_repeat}: allowed is 1 to {flags.repeats}, the --repeats")
    if flags.ours not in flags.lines:
        parser.error(f"--ours {flags.ours}: allowed is one of the lines, {'; '.join(flags.lines)}")


def _further(line: str, parser: argparse.ArgumentParser) -> tuple[str, tuple[str, ...]]:
    name, colon, overrides = line.partition(":")
    if not colon or name in LINES:
        parser.error(f"--line {line}: allowed is 'NAME: OVERRIDE ...' with a new name")
    return name, tuple(overrides.split())


def _others(path: Path, parser: argparse.ArgumentParser) -> dict[str, Any]:
    """What others/install.py wrote."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        parser.error(f"--others {path}: {error}; allowed is the others.json of others/install.py")
    return found


def _same_settings(flags: argparse.Namespace) -> None:
    """One folder holds cells of one kind: with other settings they would be repeats of each other."""
    settings = {name: getattr(flags, name) for name in _SETTINGS}
    settings |= {f"tasks {task}": recipe for task, recipe in flags.tasks.items()}
    known = _settings(flags.folder)
    for name, value in settings.items():
        if known.get(name, value) != value:
            sys.exit(f"--{name}={value}: {flags.folder} was begun with {known[name]}; name another folder")
    write_json(flags.folder / _SETTINGS_FILE, settings | known)


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / _SETTINGS_FILE
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def _path(cell: Cell, flags: argparse.Namespace) -> Path:
    folder: Path = flags.folder
    return folder / "cells" / f"{cell.name}.json"


def _run(group: Sequence[Cell], order: Sequence[Cell], flags: argparse.Namespace) -> list[dict[str, Any]]:
    """Run these and write their files. Returns what is in them."""
    for cell in group:
        number = order.index(cell) + 1
        print(f"{number}/{len(order)}: {cell.line}, {cell.task} {cell.shape}", file=sys.stderr, flush=True)

    def run_to_file(cell: Cell, turn: Turn | None = None) -> dict[str, Any]:
        done = run(cell, flags, turn)
        if not (turn and turn.is_over):
            write_json(_path(cell, flags), done)
            if done["error"]:
                print(f"  failed: {cell.line}: {done['error']}", file=sys.stderr, flush=True)
        return done

    if len(group) == 1:
        return [run_to_file(group[0])]
    return side_by_side([partial(run_to_file, cell) for cell in group], flags.folder / "runs")


def main() -> None:
    """Run what is missing and may be run now, write and print the results."""
    flags = parse()
    take_stops_as_ctrl_c()
    begin = time.monotonic()
    large = [recipe for recipe in flags.tasks.values() if recipe in TASKS.values()]
    if large and flags.budget_s != 0 and not gpu.observe().names:
        sys.exit(f"{large[0]} needs a GPU, and none is here; --tasks lora=tiny_llama_peft runs on a CPU")
    cells, left = flags.folder / "cells", 0
    cells.mkdir(parents=True, exist_ok=True)
    _same_settings(flags)
    tflops = matmul_tflops(flags)
    took_s: dict[tuple[str, str, str], float] = {}
    done: list[dict[str, Any]] = []
    group: list[Cell] = []
    group_s = 0.0
    for cell in (order := list(plan(flags))):
        path = _path(cell, flags)
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        if known and not (flags.again and known["error"]):
            took_s[cell.kind] = known["seconds"]
            continue
        takes_s = 1.2 * took_s.get(cell.kind, flags.cell_s / 1.2)
        if flags.budget_s is not None and time.monotonic() - begin + group_s + takes_s > flags.budget_s:
            left += 1
            continue
        group.append(cell)
        group_s += takes_s
        if len(group) == flags.together:
            done += _run(group, order, flags)
            took_s |= {one.kind: now["seconds"] for one, now in zip(group, done[-len(group) :], strict=True)}
            group, group_s = [], 0.0
    if group:
        done += _run(group, order, flags)
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(cells.glob("*.json"))]
    results = peers_table.results(found, flags.folder, flags.ours, tflops, flags.tolls)
    write_json(flags.folder / "results.json", results)
    measured = {(cell["line"], cell["shape"]) for cell in found}
    missing = [asdict(cell) for cell in order if not _path(cell, flags).exists()]
    asked = not_run(flags) if flags.budget_s != 0 else []
    results["not_run"] = [one for one in asked if (one["line"], one["shape"]) not in measured]
    results["missing"] = missing
    peers_table.show(results)
    if missing and flags.budget_s != 0:
        print(f"{len(missing)} of {len(order)} runs are still missing; a later call with time for them runs them")
    print(json.dumps({"num_left": left, **results}))
    if done and all(one["error"] for one in done):
        sys.exit("no run of this call came to its end")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on with what is missing")
