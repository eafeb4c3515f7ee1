"""Figures and table of `peers.py`: runs to tokens/s with intervals over them.

Keep ratios are of medians, as other libraries' blocks are not known; records have them over pairs of blocks.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from cctrain import ratios, stats
from cctrain.comparison.arms import arms_of
from cctrain.emulation.profile import emulated_note
from cctrain.load import read_run

MODES = {"off": "off", "emulated": "tolled"}
Key = tuple[str, str, str]
"""Task, shape, line."""


@dataclass(frozen=True, slots=True)
class Rate:
    """What a line reached once under one mode."""

    tokens_per_s_per_gpu: float
    """Padded tokens, median over the steady steps."""
    is_steady: bool


def results(
    cells: Sequence[Mapping[str, Any]], folder: Path, ours: str, matmul_tflops: float | None, tolls: str
) -> dict[str, Any]:
    """What the cells came to: a row a line, task and shape, and the cells that failed with their errors.

    Run directories are relative to `folder`, which may have come from another machine.
    """
    rates: dict[Key, dict[int, dict[str, Rate]]] = {}
    floors: dict[tuple[str, str], float | None] = {}
    for cell in cells:
        place = (cell["task"], cell["shape"])
        if not cell["error"] or cell.get("timed"):
            rates.setdefault((*place, cell["line"]), {})[cell["repeat"]] = _rates(cell, folder)
            floors[place] = floors.get(place) or _floor(cell, folder, matmul_tflops)
    done = [cell for cell in cells if cell["run_dir"] and not cell["error"]]
    failed = [{name: cell[name] for name in ("task", "shape", "line", "repeat", "error")} for cell in cells]
    return {
        "ours": ours,
        "tolls": tolls,
        "emulated": emulated_note(is_cpu=any(_record(cell, folder)["identity"]["gpu"] == ["cpu"] for cell in done)),
        "matmul_tflops": matmul_tflops,
        "rows": [_row(key, found, rates.get((*key[:2], ours), {}), floors[key[:2]]) for key, found in rates.items()],
        "failed": [one for one in failed if one["error"]],
    }


def _rates(cell: Mapping[str, Any], folder: Path) -> dict[str, Rate]:
    """By mode: of both arms of a run of cctrain, or of another library's process."""
    if cell["run_dir"]:
        arms = [arm for arm in arms_of(read_run(folder / cell["run_dir"] / "run.json")) if arm.is_sound]
        return {MODES[arm.mode]: Rate(arm.tokens_per_s_per_gpu, arm.why_unsteady is None) for arm in arms}
    return {mode: _of_steps(**timed) for mode, timed in cell["timed"].items()}


def _of_steps(step_times_s: list[float], tokens_per_step: int) -> Rate:
    found = stats.find_steady(step_times_s)
    is_steady = found.why_not(range(1, len(step_times_s) + 1)) is None
    return Rate(tokens_per_step / statistics.median(step_times_s[found.cut :]), is_steady)


def _row(
    key: Key,
    found: Mapping[int, Mapping[str, Rate]],
    ours: Mapping[int, Mapping[str, Rate]],
    floor: float | None,
) -> dict[str, Any]:
    row: dict[str, Any] = dict(zip(("task", "shape", "line"), key, strict=True))
    row["floor_tokens_per_s_per_gpu"] = floor
    for mode in MODES.values():
        theirs, own = ({repeat: of[mode] for repeat, of in side.items() if mode in of} for side in (found, ours))
        row[mode] = _figures(theirs, own, floor)
    both = [of for of in found.values() if len(of) == len(MODES)]
    if both:
        values = [[of[mode].tokens_per_s_per_gpu for of in both] for mode in ("off", "tolled")]
        row["keep_ratio"], row["keep_ratio_ci95"] = ratios.ratio_of_runs(*values, is_paired=True)
    return row


def _figures(found: Mapping[int, Rate], ours: Mapping[int, Rate], floor: float | None) -> dict[str, Any] | None:
    """Of one line under one mode. `ours_over` is of runs of the same repeat, in one campaign the nearest."""
    if not found:
        return None
    reached, ci95 = ratios.geometric_mean([rate.tokens_per_s_per_gpu for rate in found.values()])
    common = sorted(found.keys() & ours.keys())
    over: tuple[float | None, Any] = (None, None)
    if common:
        pair = [[side[repeat].tokens_per_s_per_gpu for repeat in common] for side in (found, ours)]
        over = ratios.ratio_of_runs(*pair, is_paired=True)
    return {
        "tokens_per_s_per_gpu": reached,
        "ci95": ci95,
        "num_runs": len(found),
        "num_unsteady": sum(not rate.is_steady for rate in found.values()),
        "share_of_floor": reached / floor if floor else None,
        "ours_over": over[0],
        "ours_over_ci95": over[1],
    }


def _floor(cell: Mapping[str, Any], folder: Path, tflops: float | None) -> float | None:
    """Tokens/s/GPU if nothing but the model's matrix products took time, at the rate of large ones."""
    if not cell["run_dir"] or not tflops:
        return None
    steps = _record(cell, folder)["steps"]
    flops = sum(step["model_flops"] or 0.0 for step in steps)
    return tflops * 1e12 * sum(step["padded_tokens"] for step in steps) / flops if flops else None


def _record(cell: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / cell["run_dir"] / "run.json").read_text(encoding="utf-8"))
    return record


def show(found: Mapping[str, Any]) -> None:
    """Print the tables and what failed."""
    console = Console(width=180, markup=False)
    for task, shape in dict.fromkeys((row["task"], row["shape"]) for row in found["rows"]):
        console.print(_table(task, shape, found))
    for one in found["failed"]:
        console.print(
            f"failed: {one['line']}, {one['task']} {one['shape']}, repeat {one['repeat'] + 1}: {one['error']}"
        )
    shapes: dict[tuple[str, str], list[str]] = {}
    for one in found["not_run"]:
        shapes.setdefault((one["line"], one["why"]), []).append(one["shape"])
    for (line, why), names in shapes.items():
        console.print(f"not run: {line}, {' '.join(names)}: {why}")


def _table(task: str, shape: str, found: Mapping[str, Any]) -> Table:
    ours = found["ours"]
    title = f"{task} {shape}, padded tokens/s/GPU with 95 % intervals over runs"
    made = Table(title=title, caption=found["emulated"])
    made.add_column("line")
    over = ("of floor", f"{ours} over it")
    for name in ("off", *over, f"emulated {found['tolls']}", *over, "keep ratio", "runs"):
        made.add_column(name, justify="right")
    rows = [row for row in found["rows"] if (row["task"], row["shape"]) == (task, shape)]
    for row in sorted(rows, key=lambda row: -(row["tolled"] or {}).get("tokens_per_s_per_gpu", 0)):
        cells = [text for mode in MODES.values() for text in _texts(row[mode])]
        keep = _with_interval(row.get("keep_ratio"), row.get("keep_ratio_ci95"), "{:.3f}")
        arms = [row[mode] for mode in MODES.values() if row[mode]]
        num_unsteady = max((arm["num_unsteady"] for arm in arms), default=0)
        unsteady = f", {num_unsteady} unsteady" if num_unsteady else ""
        made.add_row(row["line"], *cells, keep, f"{max((arm['num_runs'] for arm in arms), default=0)}{unsteady}")
    return made


def _texts(figures: Mapping[str, Any] | None) -> tuple[str, str, str]:
    if figures is None:
        return "-", "-", "-"
    share = figures["share_of_floor"]
    return (
        _with_interval(figures["tokens_per_s_per_gpu"], figures["ci95"], "{:,.0f}"),
        f"{share:.1%}" if share else "n/a",
        _with_interval(figures["ours_over"], figures["ours_over_ci95"], "{:.3f}"),
    )


def _with_interval(value: float | None, ci95: Sequence[float] | None, form: str) -> str:
    if value is None:
        return "n/a"
    return form.format(value) + (f" ({form.format(ci95[0])} to {form.format(ci95[1])})" if ci95 else "")
