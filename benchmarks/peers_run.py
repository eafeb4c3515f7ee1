"""One cell of `peers.py`: the processes that it is, up to their end or its deadline."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import peers_table
import psutil
from peers_lines import FURTHER, OTHERS, Cell, shape_overrides
from peers_turns import READY_STEPS, Turn, held_too_late, tree

from cctrain.platform import host

_HERE = Path(__file__).resolve().parent
_ROOT = str(_HERE.parent)
"""For environments of the others, which have no cctrain."""
_GRACE_S = 30.0
"""For a run that is told to stop to write its record."""


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


def run(cell: Cell, flags: argparse.Namespace, turn: Turn | None = None) -> dict[str, Any]:
    """Run a cell to its end or its deadline, with a `turn` in the company of others. Returns what its file says."""
    begin = time.monotonic()
    deadline = begin + flags.cell_s
    found = (_run_other if cell.line in OTHERS else _run_recipe)(cell, flags, deadline, turn)
    seconds = round(time.monotonic() - begin - (turn.waited_s if turn else 0.0), 1)
    where = {"ended_at": datetime.now(UTC).isoformat(timespec="seconds"), "boot": host.observe(os.environ)["boot"]}
    return {**asdict(cell), "run_dir": None, "error": None, **found, "seconds": seconds, **where}


def _run_recipe(cell: Cell, flags: argparse.Namespace, deadline: float, turn: Turn | None) -> dict[str, Any]:
    waits = (f"measure.step_timeout_s={flags.cell_s * flags.together}",) if turn else ()
    printed, error = _finished([*command(cell, flags), *waits], deadline, turn)
    run_dir = next((one["run_dir"] for one in printed if "run_dir" in one), None)
    if not error:
        error = held_too_late(Path(run_dir) / "run.json", turn, flags.warmup) if run_dir else "it printed no run_dir"
    return {"run_dir": run_dir and os.path.relpath(run_dir, flags.folder), "error": error}


def _run_other(cell: Cell, flags: argparse.Namespace, deadline: float, turn: Turn | None) -> dict[str, Any]:
    """Plain and tolled steps in turns, in one process; where it cannot be emulated, plain ones in another. There is no
    record of it but this: so it holds the library's version."""
    version = flags.others[flags.lines[cell.line][0]].get("version")
    rows = _rows_file(cell, flags)
    rows.parent.mkdir(exist_ok=True)
    if not rows.exists():
        make = [sys.executable, str(_HERE / "peers_rows.py"), str(rows), "--steps", str(flags.warmup + flags.steps)]
        _, error = _finished([*make, *recipe_overrides(cell, flags)], deadline)
        if error:
            return {"version": version, "error": f"its rows: {error}"}
    program = [*other_command(cell, flags), *(["--hold", str(READY_STEPS)] if turn else [])]
    tolled = [*program, "--tolls", flags.tolls, "--blocks", str(flags.blocks)]
    timed, error = _timed([sys.executable, "-m", "cctrain", "emulate", "--", *tolled], deadline, turn, is_emulated=True)
    if not error or _left_s(deadline, turn) <= 0:
        return {"version": version, "timed": timed, "error": error}
    timed, plain_error = _timed(program, deadline, turn)
    error = f"emulated: {error}" + (f"; off: {plain_error}" if plain_error else "")
    return {"version": version, "timed": timed, "error": error}


def _timed(
    argv: Sequence[str], deadline: float, turn: Turn | None, *, is_emulated: bool = False
) -> tuple[dict[str, Any], str | None]:
    """The step times that `others/run.py` printed, by mode, and what went wrong with it."""
    printed, error = _finished(argv, deadline, turn)
    if not error and is_emulated and not any(one.get("processes") for one in printed):
        error = "the emulation met no process of it: is there a GPU?"
    timed: dict[str, Any] = next((one["timed"] for one in printed if one.get("timed")), {})
    if not error and len(timed) < (len(peers_table.MODES) if is_emulated else 1):
        error = f"it printed no step times{' of both modes' * is_emulated}"
    return timed, error


def _rows_file(cell: Cell, flags: argparse.Namespace) -> Path:
    folder: Path = flags.folder
    return folder / "rows" / f"{cell.task}-{cell.shape}.pt"


def _finished(
    argv: Sequence[str], deadline: float, turn: Turn | None = None
) -> tuple[list[dict[str, Any]], str | None]:
    """The JSON objects that a program printed, the last one first, and what went wrong with it."""
    if turn and turn.is_over:
        return [], "stopped"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (_ROOT, os.environ.get("PYTHONPATH"))))}
    try:
        process = subprocess.Popen(
            argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace", env=environment
        )
    except OSError as error:
        return [], f"cannot start {argv[0]}: {error.strerror}"
    if turn:
        turn.process = process
        if turn.is_over:
            process.terminate()
    late = None
    try:
        stdout, stderr = _communicate(process, deadline, turn)
    except subprocess.TimeoutExpired:
        late = "not done by its deadline"
        below = tree(process)
        if turn:
            turn.go_on()
        process.send_signal(signal.SIGTERM)  # a run of cctrain ends as a partial record
        try:
            stdout, stderr = process.communicate(timeout=_GRACE_S)
        except subprocess.TimeoutExpired:
            for one in reversed(below):
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
            stdout, stderr = process.communicate()
    except KeyboardInterrupt:  # a terminal's Ctrl-C the program has had as well, a SIGTERM it has not
        process.terminate()
        process.communicate()
        raise
    printed = [found for found in map(_json, reversed(stdout.splitlines())) if found]
    said = [str(one["error"]) for one in printed if one.get("error")] + stderr.strip().splitlines()[-1:]
    failed = (said or [f"exit code {process.returncode}"])[0][:500] if process.returncode else None
    return printed, late or failed


def _communicate(process: subprocess.Popen[str], deadline: float, turn: Turn | None) -> tuple[str, str]:
    """Its output. Raises TimeoutExpired at the deadline, to which the time adds that it waited for its turn."""
    while True:
        try:
            return process.communicate(timeout=max(1.0, _left_s(deadline, turn)))
        except subprocess.TimeoutExpired:
            if _left_s(deadline, turn) <= 0 and not (turn and turn.is_waiting):
                raise


def _left_s(deadline: float, turn: Turn | None) -> float:
    return deadline + (turn.waited_s if turn else 0.0) - time.monotonic()


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
