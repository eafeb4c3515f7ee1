"""Who is first: AutoModel, Hugging Face's Trainer, others, and cctrain's own step, side by side on one machine.

Background: whoever chooses a way to fine-tune under confidential computing chooses among the lines below. Each is a
list of overrides of the same command, `python -m cctrain`, and so the same model, adapters, token stream, batch and
timer; a line is one run with `cc=emulated`, whose plain and tolled steps take turns in one process. Lines take turns
too, a process each: all of them once, then all again in the opposite order, so that a drift of the machine is nobody's.
Libraries that train no recipe of AutoModel (`others/`) have two processes instead, the second under `cctrain emulate`.

    python benchmarks/peers.py DIR                        everything that is not in DIR yet, an hour and more
    python benchmarks/peers.py DIR --budget-s 540         as much of it as fits into nine minutes; until num_left is 0
    python benchmarks/peers.py DIR --shapes 4x256 --tasks lora --lines ours AutoModel --repeats 1
    python benchmarks/peers.py DIR --tasks lora=tiny_llama_peft --shapes 2x32 --steps 32      on a CPU
    python benchmarks/peers.py DIR --line "mine: +train.optimizer.fused=true"                 a further line
    python benchmarks/peers.py DIR --others OTHERS/others.json          with those that others/install.py could install
    python benchmarks/peers.py DIR --budget-s 0           the table of what is there

A cell, one line at one shape once, has a deadline; what became of it, the error of one that failed included, is a file
under DIR/cells, and what is there is not run again (`--again` runs those that failed). DIR/results.json and the last
line of stdout hold the figures: tokens/s/GPU of each line with a 95 % interval over the repeats, off and tolled, the
share of the floor (the model's FLOPs at the rate of this machine's large matrix products), and how much faster ours is.
"""

from __future__ import annotations

import argparse
import json
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

from cctrain.tolls.record import read_tolls

OURS = "ours"
LINES = {
    "AutoModel": (),
    "AutoModel, layers compiled": ("+train.distributed.enable_compile=true",),
    "Trainer + PEFT": ("engine=hf",),
    "Trainer + PEFT + Liger": ("engine=hf", "+train.model.use_liger_kernel=true"),
    "Trainer + PEFT + torch.compile": ("engine=hf", "+train.compile.enabled=true"),
    OURS: ("step=graphed",),
}
OTHERS = {
    "torchtitan": ("torchtitan",),
    "torchtitan, compiled": ("torchtitan", "--compile"),
    "torchtune": ("torchtune",),
    "torchtune, compiled": ("torchtune", "--compile"),
    "Axolotl": ("axolotl",),
}
"""Lines that `others/run.py` trains, and its arguments."""
TASKS = {"lora": "llama8b_peft", "sft": "llama8b_sft"}
SHAPES = ("4x256", "1x4096", "packed4096")
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
    for repeat in range(flags.repeats):
        for task in flags.tasks:
            for shape in flags.shapes:
                names = list(flags.lines)
                for line in names if repeat % 2 == 0 else names[::-1]:
                    if not (line in OTHERS and shape.startswith("packed")):  # they are given rows of one document
                        yield Cell(task, shape, line, repeat)


def command(cell: Cell, flags: argparse.Namespace) -> list[str]:
    """What runs a cell."""
    return [
        *(sys.executable, "-m", "cctrain", f"recipe={flags.tasks[cell.task]}", "weights=random", "track=none"),
        *("cc=emulated", f"tolls={flags.tolls}", f"cc.blocks={flags.blocks}", "launch.nproc_per_node=1"),
        *(f"measure.warmup={flags.warmup}", f"measure.steps={flags.steps}", f"run_root={flags.folder / 'runs'}"),
        *shape_overrides(cell.shape),
        *flags.lines[cell.line],
    ]


def run(cell: Cell, flags: argparse.Namespace) -> dict[str, Any]:
    """Run a cell to its end or its deadline. Returns what its file says."""
    begin = time.monotonic()
    found = (_run_other if cell.line in OTHERS else _run_recipe)(cell, flags, begin + flags.cell_s)
    seconds = round(time.monotonic() - begin, 1)
    return {**asdict(cell), "run_dir": None, "error": None, **found, "seconds": seconds}


def _run_recipe(cell: Cell, flags: argparse.Namespace, deadline: float) -> dict[str, Any]:
    printed, error = _finished(command(cell, flags), deadline)
    return {"run_dir": next((one["run_dir"] for one in printed if "run_dir" in one), None), "error": error}


def _run_other(cell: Cell, flags: argparse.Namespace, deadline: float) -> dict[str, Any]:
    """Two processes, the second under the tolls."""
    timed = {}
    program = other_command(cell, flags)
    emulate = [sys.executable, "-m", "cctrain", "emulate", "--tolls", flags.tolls, "--", *program]
    for mode, argv in (("off", program), ("tolled", emulate)):
        printed, error = _finished(argv, deadline)
        if not error and mode == "tolled" and not any(one.get("processes") for one in printed):
            error = "the emulation met no process of it: is there a GPU?"
        if error:
            return {"error": error}
        timed[mode] = next(one for one in printed if "step_times_s" in one)
    return {"timed": timed}


def _finished(argv: Sequence[str], deadline: float) -> tuple[list[dict[str, Any]], str | None]:
    """The JSON objects that a program printed, the last one first, and what went wrong with it."""
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
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
    name, *more = OTHERS[cell.line]
    size = ["--size", "tiny"] if flags.tasks[cell.task].startswith("tiny") else []
    return [
        *(flags.others[name]["python"], str(Path(__file__).parent / "others" / "run.py"), name, *more, *size),
        *("--task", cell.task, "--shape", cell.shape, "--steps", str(flags.steps), "--warmup", str(flags.warmup)),
    ]


def matmul_tflops(flags: argparse.Namespace) -> float | None:
    """The rate of this machine's large bf16 matrix products, measured once; None without a GPU."""
    if flags.matmul_tflops:
        return float(flags.matmul_tflops)
    path = flags.folder / "matmul.json"
    if not path.exists():
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
    parser.add_argument("--lines", nargs="+", default=list(LINES), metavar="NAME", help=", ".join(LINES))
    parser.add_argument("--line", action="append", default=[], metavar="NAME: OVERRIDE ...", help="a further line")
    parser.add_argument("--others", type=Path, metavar="FILE", help="of others/install.py: adds what it could install")
    parser.add_argument("--ours", default=OURS, metavar="NAME", help="the line that the others are held against")
    parser.add_argument("--tolls", default="b300")
    parser.add_argument("--repeats", type=int, default=3)
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
    for name in flags.lines:
        if name not in LINES:
            parser.error(f"--lines {name}: allowed is {', '.join(LINES)}; a new one is --line 'NAME: OVERRIDES'")
    flags.others = json.loads(flags.others.read_text(encoding="utf-8")) if flags.others else {}
    others = {name: () for name, (library, *_) in OTHERS.items() if "python" in flags.others.get(library, {})}
    further = dict(line.split(":", 1) for line in flags.line)
    further = {name: tuple(overrides.split()) for name, overrides in further.items()}
    flags.lines = {name: LINES[name] for name in flags.lines} | others | further
    return flags


def main() -> None:
    """Run what is missing and may be run now, write and print the results."""
    flags = parse()
    begin = time.monotonic()
    cells, left = flags.folder / "cells", 0
    cells.mkdir(parents=True, exist_ok=True)
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
        print(f"{number}/{len(order)}: {cell.line}, {cell.task} {cell.shape}", file=sys.stderr, flush=True)
        done = run(cell, flags)
        took_s[kind] = done["seconds"]
        path.write_text(json.dumps(done, indent=1), encoding="utf-8")
        if done["error"]:
            print(f"  failed: {done['error']}", file=sys.stderr, flush=True)
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(cells.glob("*.json"))]
    results = peers_table.results(found, flags.ours, matmul_tflops(flags) if found else None)
    (flags.folder / "results.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    peers_table.show(results)
    print(json.dumps({"num_left": left, **results}))


if __name__ == "__main__":
    main()
