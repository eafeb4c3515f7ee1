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
    python benchmarks/peers.py DIR --lines "Trainer + PEFT" "Trainer + PEFT + Liger"      names with blanks are quoted
    python benchmarks/peers.py DIR --tasks lora=tiny_llama_peft --shapes 2x32 --steps 32      on a CPU
    python benchmarks/peers.py DIR --line "mine: +train.optimizer.fused=true"                 a further line
    python benchmarks/peers.py DIR --others OTHERS/others.json          with those that others/install.py could install
    python benchmarks/peers.py DIR --only-repeat 2        of three, the second: each may be of another machine
    python benchmarks/peers.py DIR --budget-s 0           the table of what is there

A cell, one line at one shape once, has a deadline; what became of it, the error of one that failed included, is a file
under DIR/cells, and what is there is not run again (`--again` runs those that failed). After a kill the same command
goes on. The lines come in the order of --lines, so that a short budget has the first of them at every shape.
DIR/results.json and the last line of stdout hold the figures: tokens/s/GPU of each line with a 95 % interval over the
repeats, off and tolled, the share of the floor (the model's FLOPs at the rate of this machine's large matrix products),
how much faster ours is, what failed, and which lines are not run and why.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import peers_table

from cctrain.emulation.profile import load_profile
from cctrain.errors import RequestError
from cctrain.platform import gpu
from cctrain.rundir import write_json
from cctrain.tolls.record import read_tolls

OURS = "ours"
LINES: dict[str, tuple[str, ...]] = {
    OURS: ("step=graphed",),
    "AutoModel": (),
    "AutoModel, layers compiled": ("+train.distributed.enable_compile=true",),
    "Trainer + PEFT": ("engine=hf",),
    "torchtune": ("torchtune",),
    "torchtune, compiled": ("torchtune", "--compile"),
    "torchtitan": ("torchtitan",),
    "Trainer + PEFT + Liger": ("engine=hf", "+train.model.use_liger_kernel=true"),
    "Trainer + PEFT + torch.compile": ("engine=hf", "+train.compile.enabled=true"),
    "torchtitan, compiled": ("torchtitan", "--compile"),
    "Axolotl": ("axolotl",),
    "Unsloth": ("unsloth",),
}
"""Overrides; of those in OTHERS the arguments of `others/run.py`. What matters most comes first."""
OTHERS = ("torchtune", "torchtune, compiled", "torchtitan", "torchtitan, compiled", "Axolotl", "Unsloth")
PACKED = ("torchtune",)
"""Libraries that `others/run.py` gives packed rows."""
FURTHER = {("llama8b_peft", "AutoModel, layers compiled"): ("train.peft.use_triton=false",)}
"""Overrides of a recipe's line. AutoModel's layers are compiled one by one, as each adapter is a class of its own; with
its Triton kernels for adapters that takes 9 s a layer."""
TASKS = {"lora": "llama8b_peft", "sft": "llama8b_sft"}
SHAPES = ("4x256", "1x4096", "packed4096")
_HERE = Path(__file__).resolve().parent
_ROOT = str(_HERE.parent)
"""For environments of the others, which have no cctrain."""
_GRACE_S = 30.0
"""For a run that is told to stop to write its record."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One run: a line, of a task, at a shape, for the `repeat`-th time (from 0)."""

    task: str
    shape: str
    line: str
    repeat: int

    @property
    def name(self) -> str:
        """Of its file."""
        return "-".join(re.sub(r"\W+", "_", str(part)) for part in asdict(self).values())


def shape_overrides(shape: str) -> tuple[str, ...]:
    """Of `4x256` (4 samples of 256 tokens) and `packed4096` (samples of SQuAD's lengths, packed into 4096)."""
    batch, packed = re.fullmatch(r"(\d+)x(\d+)", shape), re.fullmatch(r"packed(\d+)", shape)
    if batch:
        micro, data = batch[1], (f"data.seq_len={batch[2]}",)
    elif packed:
        strategy = "++train.packed_sequence.packing_strategy=neat"
        micro = "1"
        data = ("data.lengths=squad", f"++train.packed_sequence.packed_sequence_size={packed[1]}", strategy)
    else:
        raise SystemExit(f"shape {shape}: allowed is SAMPLESxTOKENS, as 4x256, or packedTOKENS, as packed4096")
    sizes = [f"train.step_scheduler.{which}_batch_size={micro}" for which in ("local", "global")]
    return ("data=synthetic", *data, *sizes, "++train.model.attn_implementation=sdpa")


def plan(flags: argparse.Namespace) -> Iterator[Cell]:
    """Every cell, in the order in which they are run."""
    for repeat in [flags.only_repeat - 1] if flags.only_repeat else range(flags.repeats):
        names = list(flags.lines) if repeat % 2 == 0 else list(flags.lines)[::-1]
        for task in flags.tasks:
            for shape in flags.shapes:
                for line in names:
                    if why_not(line, shape, flags) is None:
                        yield Cell(task, shape, line, repeat)


def why_not(line: str, shape: str, flags: argparse.Namespace) -> str | None:
    """Why a line is not run at a shape; None where it is."""
    if line not in OTHERS:
        return None
    library = flags.lines[line][0]
    if flags.others is None:
        return "no --others FILE: others/install.py makes one"
    if library not in flags.others:
        return f"{library} is not in the --others FILE: others/install.py DIR {library}"
    tried = flags.others[library]
    if "python" not in tried:
        failed = f"its {tried.get('failed_at')} failed: {tried.get('error')}"
        return failed if "failed_at" in tried else "the --others FILE names no python for it: it is not install.py's"
    is_given = library in PACKED or not shape.startswith("packed")
    return None if is_given else "others/run.py gives it rows of one document, not packed ones"


def not_run(flags: argparse.Namespace) -> list[dict[str, str]]:
    """The lines that are not run, with the shapes at which they are not, and why."""
    found = [(line, shape, why_not(line, shape, flags)) for line in flags.lines for shape in flags.shapes]
    return [{"line": line, "shape": shape, "why": why} for line, shape, why in found if why]


def command(cell: Cell, flags: argparse.Namespace) -> list[str]:
    """What runs a cell."""
    return [
        *(sys.executable, "-m", "cctrain", *recipe_overrides(cell, flags), "track=none"),
        *("cc=emulated", f"tolls={flags.tolls}", f"cc.blocks={flags.blocks}", "launch.nproc_per_node=1"),
        *(f"measure.warmup={flags.warmup}", f"measure.steps={flags.steps}", f"run_root={flags.folder / 'runs'}"),
        *flags.lines[cell.line],
        *FURTHER.get((flags.tasks[cell.task], cell.line), ()),
    ]


def recipe_overrides(cell: Cell, flags: argparse.Namespace) -> tuple[str, ...]:
    """What is trained, the same for every line."""
    return (f"recipe={flags.tasks[cell.task]}", "weights=random", *shape_overrides(cell.shape))


def run(cell: Cell, flags: argparse.Namespace) -> dict[str, Any]:
    """Run a cell to its end or its deadline. Returns what its file says."""
    begin = time.monotonic()
    found = (_run_other if cell.line in OTHERS else _run_recipe)(cell, flags, begin + flags.cell_s)
    seconds = round(time.monotonic() - begin, 1)
    return {**asdict(cell), "run_dir": None, "error": None, **found, "seconds": seconds}


def _run_recipe(cell: Cell, flags: argparse.Namespace, deadline: float) -> dict[str, Any]:
    printed, error = _finished(command(cell, flags), deadline)
    run_dir = next((one["run_dir"] for one in printed if "run_dir" in one), None)
    if not (error or run_dir):
        error = "it printed no run_dir"
    return {"run_dir": run_dir and os.path.relpath(run_dir, flags.folder), "error": error}


def _run_other(cell: Cell, flags: argparse.Namespace, deadline: float) -> dict[str, Any]:
    """Plain and tolled steps in turns, in one process; where it cannot be emulated, plain ones in another."""
    rows = _rows_file(cell, flags)
    rows.parent.mkdir(exist_ok=True)
    if not rows.exists():
        make = [sys.executable, str(_HERE / "peers_rows.py"), str(rows), "--steps", str(flags.warmup + flags.steps)]
        _, error = _finished([*make, *recipe_overrides(cell, flags)], deadline)
        if error:
            return {"error": f"its rows: {error}"}
    program = other_command(cell, flags)
    tolled = [*program, "--tolls", flags.tolls, "--blocks", str(flags.blocks)]
    timed, error = _timed([sys.executable, "-m", "cctrain", "emulate", "--", *tolled], deadline, is_emulated=True)
    if not error or time.monotonic() >= deadline:
        return {"timed": timed, "error": error}
    timed, plain_error = _timed(program, deadline)
    return {"timed": timed, "error": f"emulated: {error}" + (f"; off: {plain_error}" if plain_error else "")}


def _timed(argv: Sequence[str], deadline: float, *, is_emulated: bool = False) -> tuple[dict[str, Any], str | None]:
    """The step times that `others/run.py` printed, by mode, and what went wrong with it."""
    printed, error = _finished(argv, deadline)
    if not error and is_emulated and not any(one.get("processes") for one in printed):
        error = "the emulation met no process of it: is there a GPU?"
    timed = next((one["timed"] for one in printed if one.get("timed")), {})
    if not error and len(timed) < (len(peers_table.MODES) if is_emulated else 1):
        error = f"it printed no step times{' of both modes' * is_emulated}"
    return timed, error


def _rows_file(cell: Cell, flags: argparse.Namespace) -> Path:
    folder: Path = flags.folder
    return folder / "rows" / f"{cell.task}-{cell.shape}.pt"


def _finished(argv: Sequence[str], deadline: float) -> tuple[list[dict[str, Any]], str | None]:
    """The JSON objects that a program printed, the last one first, and what went wrong with it."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (_ROOT, os.environ.get("PYTHONPATH"))))}
    try:
        process = subprocess.Popen(
            argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace", env=environment
        )
    except OSError as error:
        return [], f"cannot start {argv[0]}: {error.strerror}"
    late = None
    try:
        stdout, stderr = process.communicate(timeout=max(1.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        late = "not done by its deadline"
        process.send_signal(signal.SIGTERM)  # a run of cctrain ends as a partial record
        try:
            stdout, stderr = process.communicate(timeout=_GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            stdout, stderr = process.communicate()
    except KeyboardInterrupt:  # the program has had it as well
        process.communicate()
        raise
    printed = [found for found in map(_json, reversed(stdout.splitlines())) if found]
    said = [str(one["error"]) for one in printed if one.get("error")] + stderr.strip().splitlines()[-1:]
    failed = (said or [f"exit code {process.returncode}"])[0][:500] if process.returncode else None
    return printed, late or failed


def _json(line: str) -> dict[str, Any] | None:
    try:
        found = json.loads(line) if line.startswith("{") else None
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def other_command(cell: Cell, flags: argparse.Namespace) -> list[str]:
    """What runs a cell of another library."""
    name, *more = flags.lines[cell.line]
    size = ["--size", "tiny"] if flags.tasks[cell.task].startswith("tiny") else []
    return [
        *(flags.others[name]["python"], str(_HERE / "others" / "run.py"), name, *more, *size, "--task", cell.task),
        *("--rows", str(_rows_file(cell, flags)), "--steps", str(flags.steps), "--warmup", str(flags.warmup)),
    ]


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


def _named(pairs: Sequence[str], known: dict[str, Any]) -> dict[str, Any]:
    """`lora` and `lora=tiny_llama_peft` to names and what they stand for."""
    return {
        name: value or known.get(name) or sys.exit(f"{name}: allowed is {', '.join(known)}, or NAME=RECIPE")
        for name, _, value in (pair.partition("=") for pair in pairs)
    }


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
    parser.add_argument("--budget-s", type=float, help="start no run that may end later than that")
    parser.add_argument("--matmul-tflops", type=float, help="the floor's rate, where it is known")
    parser.add_argument("--again", action="store_true", help="run again what failed")
    flags = parser.parse_args()
    flags.folder = flags.folder.resolve()
    flags.tasks = _named(flags.tasks, TASKS)
    for shape in flags.shapes:
        shape_overrides(shape)  # says what is wrong with one
    further = dict(_further(line, parser) for line in flags.line)
    known = LINES | further
    for name in flags.lines:
        if name not in known:
            parser.error(f"--lines {name}: allowed is {'; '.join(known)}; a new one is --line 'NAME: OVERRIDES'")
    flags.lines = {name: known[name] for name in flags.lines} | further
    for name, least in (("repeats", 1), ("steps", 1), ("blocks", 1), ("warmup", 0)):
        if getattr(flags, name) < least:
            parser.error(f"--{name} {getattr(flags, name)}: allowed is {least} or more")
    try:
        load_profile(flags.tolls)
    except RequestError as error:
        parser.error(f"--tolls: {error}")
    if flags.only_repeat is not None and not 1 <= flags.only_repeat <= flags.repeats:
        parser.error(f"--only-repeat {flags.only_repeat}: allowed is 1 to {flags.repeats}, the --repeats")
    if flags.ours not in flags.lines:
        parser.error(f"--ours {flags.ours}: allowed is one of the lines, {'; '.join(flags.lines)}")
    if flags.others:
        flags.others = _others(flags.others, parser)
    return flags


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
    path = flags.folder / "settings.json"
    settings = {name: getattr(flags, name) for name in ("tolls", "warmup", "steps", "blocks")}
    settings |= {f"tasks {task}": recipe for task, recipe in flags.tasks.items()}
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for name, value in settings.items():
        if known.get(name, value) != value:
            sys.exit(f"--{name}={value}: {flags.folder} was begun with {known[name]}; name another folder")
    write_json(path, settings | known)


def main() -> None:
    """Run what is missing and may be run now, write and print the results."""
    flags = parse()
    begin = time.monotonic()
    cells, left = flags.folder / "cells", 0
    cells.mkdir(parents=True, exist_ok=True)
    _same_settings(flags)
    tflops = matmul_tflops(flags)
    took_s: dict[tuple[str, str, str], float] = {}
    for number, cell in enumerate(order := list(plan(flags)), start=1):
        path = cells / f"{cell.name}.json"
        kind = (cell.task, cell.shape, cell.line)
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        if known and not (flags.again and known["error"]):
            took_s[kind] = known["seconds"]
            continue
        passed_s = time.monotonic() - begin
        if flags.budget_s is not None and passed_s + 1.2 * took_s.get(kind, flags.cell_s / 1.2) > flags.budget_s:
            left += 1
            continue
        if flags.tasks[cell.task] in TASKS.values() and not gpu.observe().names:
            sys.exit(
                f"{flags.tasks[cell.task]} needs a GPU, and none is here; --tasks lora=tiny_llama_peft runs on a CPU"
            )
        print(f"{number}/{len(order)}: {cell.line}, {cell.task} {cell.shape}", file=sys.stderr, flush=True)
        done = run(cell, flags)
        took_s[kind] = done["seconds"]
        write_json(path, done)
        if done["error"]:
            print(f"  failed: {done['error']}", file=sys.stderr, flush=True)
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(cells.glob("*.json"))]
    results = peers_table.results(found, flags.folder, flags.ours, tflops, flags.tolls)
    missing = [asdict(cell) for cell in order if not (cells / f"{cell.name}.json").exists()]
    results |= {"not_run": not_run(flags), "missing": missing}
    write_json(flags.folder / "results.json", results)
    peers_table.show(results)
    if missing:
        print(f"{len(missing)} of {len(order)} runs are still missing; a later call with time for them runs them")
    print(json.dumps({"num_left": left, **results}))


if __name__ == "__main__":
    main()
