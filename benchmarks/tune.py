"""How near the search of `python -m cctrain tune` comes to a full grid's best, and in how many trials.

    python benchmarks/tune.py record grid.jsonl recipe=llama8b_peft weights=random data=synthetic data.seq_len=512 \\
        cc=emulated tolls=b300 cc.blocks=4 measure.warmup=5 tune.global_batch=[4,16] track=none [--for-s 400]
    python benchmarks/tune.py replay grid.jsonl [--max-trials 8] [--starts 12] [--plain]

`record` takes the settings of tune and runs every point of its search as a trial of its own, each with the deadline
tune.trial_timeout_s; what runs out of memory or fails is recorded as that, and what is larger than a point of its kind
that ran out is not run. A trial's line is on the disk before the next one, so that the same command goes on where it
was, on another machine too if the file is carried there; with --for-s no trial is begun after so many seconds. On
several GPUs, --share 0/2 and --share 1/2 with a file and a run_root each take every second point; the lines of the
second file but its first, appended to the first file, make one grid of both.

`replay` needs no GPU: it searches the recorded points, each of several as the recipe as it stands, and says how far
what was found is from the best of the grid. With --plain an emulated grid is searched for the fastest plain steps. A
line a start, and as the last line of stdout one JSON object; promised are 8 trials to within 2 %.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from cctrain.campaign.ledger import Ledger
from cctrain.platform import versions
from cctrain.report.tuned import Progress
from cctrain.tune.memory import fit_memory
from cctrain.tune.point import OUT_OF_MEMORY, Observation, Point, Work
from cctrain.tune.request import Request, checked
from cctrain.tune.search import Problem, is_allowed, search
from cctrain.tune.step_time import Prior
from cctrain.tune.trials import Trials

_WITHIN = 0.02
"""What is promised: of the grid's best rate."""


def record(grid: Path, settings: list[str], for_s: float | None, share: tuple[int, int]) -> int:
    """Run what is not in the file yet. Returns 0 once the share of the grid is whole, 1 where some of it is left."""
    request = checked(settings)
    problem = request.problem
    _begin(grid, request)
    begin, seen = time.monotonic(), [one for one, _ in _lines(grid)]
    done = {one.point for one in seen}
    first, step = share
    wanted = list(dict.fromkeys([problem.base, *problem.points]))[first::step]
    left = [point for point in wanted if point not in done]
    progress = Progress(len(left), 0)
    with Ledger(request.ledger, verb="tune") as ledger:
        trials = Trials(request, ledger, progress)
        for point in left:
            if for_s and time.monotonic() - begin > for_s:
                break
            memory = fit_memory(problem.works, seen, problem.memory_gib, problem.memory_margin)
            if memory.chance(point):
                one = trials.run(point)
            else:
                why = "not run: as large as a point of its kind that ran out of memory"
                one = Observation(point=point, outcome=OUT_OF_MEMORY, why=why)
            seen.append(one)
            progress.saw(one)
            _append(grid, {"observation": dataclasses.asdict(one), "work": dataclasses.asdict(problem.works[point])})
    num_left = len(set(wanted) - {one.point for one in seen})
    print(json.dumps({"grid": str(grid), "num_points": len(seen), "num_left": num_left}))
    return int(num_left > 0)


def _begin(grid: Path, request: Request) -> None:
    """The first line: what the points are of."""
    problem = request.problem
    header: dict[str, Any] = {
        "arguments": list(request.arguments),
        "mode": request.mode,
        "gpu": sorted(set(request.gpus.names)),
        "versions": versions.package_versions(),
        "num_ranks": problem.num_ranks,
        "memory_gib": problem.memory_gib,
        "memory_margin": problem.memory_margin,
        "min_keep": problem.min_keep,
        "prior": {"middle": problem.prior.middle.tolist(), "spread": problem.prior.spread.tolist()},
    }
    if not grid.exists():
        _append(grid, {"header": header})
        return
    found = _header(grid)
    for key in ("arguments", "gpu"):
        if sorted(found[key]) != sorted(header[key]):  # in whatever order they were given
            raise SystemExit(f"{grid} is of {key} {found[key]}, not {header[key]}: give another file")


def _append(grid: Path, line: dict[str, Any]) -> None:
    is_cut = grid.exists() and not grid.read_bytes().endswith(b"\n")
    with grid.open("a", encoding="utf-8") as file:
        file.write("\n" * is_cut + json.dumps(line, allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _header(grid: Path) -> dict[str, Any]:
    with grid.open(encoding="utf-8") as file:
        header: dict[str, Any] = json.loads(file.readline())["header"]
    return header


def _lines(grid: Path) -> list[tuple[Observation, Work]]:
    """Every point's; half a line, as a kill leaves it, is left out and its point run again."""
    found = []
    for text in grid.read_text(encoding="utf-8").splitlines()[1:]:
        with contextlib.suppress(ValueError):
            line = json.loads(text)
            work = {**line["work"], "memory_gib": line["work"]["memory_gib"] and tuple(line["work"]["memory_gib"])}
            one = line["observation"]
            found.append((Observation(**{**one, "point": Point(**one["point"])}), Work(**work)))
    return found


def problem_of(grid: Path, *, is_plain: bool = False) -> tuple[Problem, dict[Point, Observation]]:
    """The search over a recorded grid, and what every trial of it comes to."""
    header, lines = _header(grid), _lines(grid)
    seen = {one.point: _plain(one, header["num_ranks"]) if is_plain else one for one, _ in lines}
    prior = Prior(*(np.array(header["prior"][name]) for name in ("middle", "spread")))
    problem = Problem(
        base=lines[0][0].point,
        points=list(seen),
        works={one.point: work for one, work in lines},
        prior=prior,
        min_keep=None if is_plain else header["min_keep"],
        **{key: header[key] for key in ("num_ranks", "memory_gib", "memory_margin")},
    )
    return problem, seen


def _plain(one: Observation, num_ranks: int) -> Observation:
    """As if the run had not been emulated."""
    seconds = one.plain_step_time_s
    if not one.is_complete or not seconds or not one.real_tokens:
        return one
    rate = one.real_tokens / seconds / num_ranks
    return dataclasses.replace(one, rate=rate, step_time_s=seconds, plain_step_time_s=None, keep_ratio=None)


def replay(grid: Path, max_trials: int, num_starts: int | None, *, is_plain: bool) -> None:
    """Search the grid from several starts and print how near each came."""
    problem, seen = problem_of(grid, is_plain=is_plain)
    allowed = [one for one in seen.values() if is_allowed(problem, one)]
    top = max(allowed, key=lambda one: one.rate or 0.0)
    starts = [one.point for one in seen.values() if one.is_complete]
    if num_starts and num_starts < len(starts):
        starts = [starts[round(index * (len(starts) - 1) / max(1, num_starts - 1))] for index in range(num_starts)]
    print(f"{len(seen)} points, of which {len(allowed)} may be chosen; best: {top.point.label}, {top.rate:,.0f}")
    found = [_from(dataclasses.replace(problem, base=start), seen, max_trials, top.rate or 0.0) for start in starts]
    distances, trials = [one["distance"] for one in found], [one["num_trials"] for one in found]
    facts = {
        "grid": str(grid),
        "is_plain": is_plain,
        "num_points": len(seen),
        "best": dataclasses.asdict(top.point),
        "best_rate": top.rate,
        "max_trials": max_trials,
        "num_starts": len(starts),
        "share_within_2_percent": sum(distance <= _WITHIN for distance in distances) / len(distances),
        "worst_distance": max(distances),
        "median_distance": statistics.median(distances),
        "most_trials": max(trials),
        "mean_trials": statistics.fmean(trials),
        "starts": found,
    }
    print(json.dumps(facts))


def _from(problem: Problem, seen: dict[Point, Observation], max_trials: int, top: float) -> dict[str, Any]:
    result = search(problem, seen.__getitem__, max_trials)
    rates = [one.rate or 0.0 if is_allowed(problem, one) else 0.0 for one in result.seen]
    near = next((number for number, rate in enumerate(rates, 1) if rate >= (1 - _WITHIN) * top), None)
    distance = 1 - max(rates) / top
    print(
        f"from {problem.base.label}: {len(rates)} trials, within 2 % after {near}, at the end {distance:.2%} below the "
        f"best ({result.why})"
    )
    return {
        "base": problem.base.label,
        "num_trials": len(rates),
        "first_within_2_percent": near,
        "distance": distance,
        "why": result.why,
        "path": [one.point.label for one in result.seen],
    }


def _share(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise argparse.ArgumentTypeError(f"{text}: allowed is K/N with K from 0 to below N, as 0/2")
    return int(index), int(count)


def main() -> int:
    """Record or replay."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    recording = verbs.add_parser("record")
    recording.add_argument("grid", type=Path)
    recording.add_argument("settings", nargs="+", help="those of tune")
    recording.add_argument("--for-s", type=float, help="begin no trial after so many seconds")
    recording.add_argument("--share", type=_share, default=(0, 1), metavar="K/N", help="every N-th point")
    replaying = verbs.add_parser("replay")
    replaying.add_argument("grid", type=Path)
    replaying.add_argument("--max-trials", type=int, default=8)
    replaying.add_argument("--starts", type=int, help="so many, spread over the grid; all of it without")
    replaying.add_argument("--plain", action="store_true", help="the plain steps of an emulated grid")
    flags = parser.parse_args()
    if flags.verb == "record":
        return record(flags.grid, flags.settings, flags.for_s, flags.share)
    replay(flags.grid, flags.max_trials, flags.starts, is_plain=flags.plain)
    return 0


if __name__ == "__main__":
    sys.exit(main())
