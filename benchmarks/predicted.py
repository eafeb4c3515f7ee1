"""How far is `predict` from what emulated runs measured?

    python benchmarks/predicted.py docs/evidence                    every record below it
    python benchmarks/predicted.py docs/evidence --gpus 2           of runs on two GPUs; without this, on one
    python benchmarks/predicted.py docs/evidence/peers/h200/runs/20261201-*

Of each run of a stock step with `cc=emulated`, the loss that the counts of its plain steps predict under its own
profile, beside the one that it measured. (A graphed step has nearly nothing to predict.) Files that hold no such run
are passed over. The last line of stdout is one JSON object; nothing is run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cctrain.emulation.profile import emulated_note, parse_profile
from cctrain.errors import RequestError
from cctrain.predict import Range, predict, read_base

Case = tuple[Path, Range, Range]
"""A record, the loss that is predicted of it, and the one that it measured."""


def cases(paths: Iterable[Path], num_gpus: int) -> list[Case]:
    """One a run, of the JSON files at and below `paths`."""
    files = sorted({file for path in paths for file in (path.rglob("*.json") if path.is_dir() else [path])})
    found: dict[str, Case] = {}
    for file in files:
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise RequestError(f"{file} is no JSON: {error}") from error
        if not _is_stock_under_tolls(record, num_gpus):
            continue
        prediction = predict(read_base(file), parse_profile(record["tolls"]["content"]))
        if prediction.measured:
            found[record["run_id"]] = file, prediction.loss, prediction.measured
    return list(found.values())


def _is_stock_under_tolls(record: Any, num_gpus: int) -> bool:
    """Whether the file is a run's that counted its crossings on GPUs and measured its loss with an interval; a CPU's
    pays for launches alone."""
    if not isinstance(record, dict) or record.get("mode") != "emulated" or record.get("step_kind") != "stock":
        return False
    crossings, kept = record.get("crossings"), record.get("keep_ratio")
    if not crossings or crossings["counted_by"] == "operators" or not kept or not kept["ci95"]:
        return False
    return len(record["steps"][0]["rank_step_time_s"]) == num_gpus


def summary(found: Sequence[Case]) -> dict[str, Any]:
    """Distances in points of the loss, predicted minus measured."""
    off_by = [points_off(case) for case in found]
    losses = [(loss, measured) for _, loss, measured in found]
    return {
        "emulated": emulated_note(),
        "num_runs": len(found),
        "median_points_off": statistics.median(map(abs, off_by)),
        "lowest_points_off": min(off_by),
        "highest_points_off": max(off_by),
        "num_too_low": sum(points < 0 for points in off_by),
        "num_of_no_loss": sum(loss.value == 0 for loss, _ in losses),
        "num_in_range": sum(loss.low <= measured.value <= loss.high for loss, measured in losses),
        "num_intervals_met": sum(loss.low <= measured.high and measured.low <= loss.high for loss, measured in losses),
    }


def points_off(case: Case) -> float:
    """Predicted minus measured."""
    _, loss, measured = case
    return 100 * (loss.value - measured.value)


def main() -> int:
    """Print a line a run and what they come to. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="a record, or a directory of some")
    parser.add_argument("--gpus", type=int, default=1, help="that the runs were on")
    flags = parser.parse_args()
    try:
        found = cases(flags.paths, flags.gpus)
    except (OSError, RequestError) as error:
        parser.error(str(error))
    if not found:
        parser.error(f"no stock step's run with cc=emulated on {flags.gpus} GPU: name records, or give --gpus")
    print("predicted loss (range), loss measured under emulated tolls (95 % interval), points off")
    for case in sorted(found, key=points_off):
        file, loss, measured = case
        print(f"{_shown(loss)}   {_shown(measured)}   {points_off(case):+6.1f}   {file}")
    print(json.dumps(summary(found)))
    return 0


def _shown(loss: Range) -> str:
    return f"{loss.value:6.1%} ({loss.low:6.1%} to {loss.high:6.1%})"


if __name__ == "__main__":
    sys.exit(main())
