"""What an emulated run came to, for the terminal: its keep ratio, its crossings, and where the loss comes from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from cctrain.emulation.profile import why_faster
from cctrain.report.crossings import print_assumptions
from cctrain.report.explained import what_shows

_FINE_SHARE = 0.1
"""Of the loss that may stay unexplained."""
_MOST_ROUNDS = 500


def emulated_rows(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Rows of the summary's table."""
    rows, kept, off = [], record["keep_ratio"], record["summary_off"]
    if off:
        rows.append(("step time, no tolls", f"{_ms(off['step_time_s']['median'])} median"))
    if kept and off and off["steady_state"]["is_steady"] and record["summary"]["steady_state"]["is_steady"]:
        rows.append(("keep ratio", _kept(kept, _rounds_begun(record["steps"]))))
        lost, profile = 1 - kept["value"], record["tolls"]["name"]
        if lost >= 0:
            rows.append(("the tolls add", f"{_with_ci(kept['added_s'], kept['added_ci95'])} to a step"))
            rows.append(("lost", f"{lost:.1%} of throughput to the tolls of {profile}"))
        else:
            text = f"{-lost:.1%} of throughput, {why_faster(kept['ci95'])}: the tolls of {profile} make nothing faster"
            rows.append(("gained", text))
    elif off and not off["steady_state"]["is_steady"]:
        rows.append(("plain steps", off["steady_state"]["why"]))
    return rows


def crossings_rows(crossings: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """The row of the summary's table that says what a plain step crossed; none where it was not counted."""
    if not crossings:
        return []
    if "operators" in crossings:
        return [("a step crosses", f"{crossings['operators']:,.0f} operators, each in place of a launch")]
    names = ("launches", "graph_launches", "waits", "collectives", "allocs_device", "allocs_host")
    parts = [f"{crossings[name]:,.0f} {name.replace('_', ' ')}" for name in names if crossings[name] >= 0.5]
    copies = crossings["copies"].items()
    parts += [
        f"{copy['count']:,.0f} copies {kind.replace('_', ' ')} ({copy['bytes'] / 1e3:,.1f} kB)"
        for kind, copy in copies
        if copy["count"] >= 0.5
    ]
    if crossings["other_copies"] >= 0.5:
        parts.append(f"{crossings['other_copies']:,.0f} other copies, which pay no toll")
    return [("a plain step crosses", ", ".join(parts))]


def print_explanation(
    explained: Mapping[str, Any], step_time_off_s: float, num_begun: int, console: Console, *, is_cpu: bool = False
) -> None:
    """A table of what each class of tolls costs a step, of a run that has begun `num_begun` rounds."""
    table = Table("toll", title="where the loss comes from, a step")
    for heading in ("costs", "alone", "left out", "injected"):
        table.add_column(heading, justify="right")
    for row in explained["classes"]:
        cells = (row["alone_s"], row["left_out_s"], row["injected_s"])
        name = str(row["name"]).replace("_", " ")
        table.add_row(name, _with_ci(row["cost_s"], row["ci95"]), *(_ms(cell) for cell in cells))
    if explained["unexplained_s"] is not None:
        table.add_row("unexplained", _with_ci(explained["unexplained_s"], explained["unexplained_ci95"]))
    table.add_section()
    total = _with_ci(explained["total_s"], explained["total_ci95"])
    table.add_row("all together", total, "", "", _ms(explained["injected_s"]), style="bold")
    num = explained["num_rounds"]
    noun = "round, so without intervals" if num == 1 else "rounds"
    table.caption = f"of {_counted(num, num_begun, noun)}; a plain step takes {_ms(step_time_off_s)}"
    console.print(table)
    share = explained["host_bound_share"]
    if share is not None:
        console.print(what_shows(share, is_cpu=is_cpu))
    num_wanted = _rounds_wanted(explained)
    if num_wanted:
        narrow = f"± {_FINE_SHARE:.0%} of the loss, if the machine stays as noisy"
        console.print(f"cc.blocks={num_wanted} would bring what is unexplained to {narrow}")


def _rounds_wanted(explained: Mapping[str, Any]) -> int | None:
    """How many rounds would explain all but a small share of the loss for sure; None where those of the run do, or none
    ever will."""
    ci95, total_s = explained["unexplained_ci95"], explained["total_s"]
    if not ci95 or total_s <= 0:
        return None
    times_too_wide = (ci95[1] - ci95[0]) / 2 / (_FINE_SHARE * total_s)
    num = math.ceil(explained["num_rounds"] * times_too_wide**2)
    return num if explained["num_rounds"] < num <= _MOST_ROUNDS else None


def print_emulated(record: Mapping[str, Any], console: Console) -> None:
    """What goes below the summary's table of an emulated run."""
    if record["explain"] and record["summary_off"]:
        plain_s, is_cpu = record["summary_off"]["step_time_s"]["mean"], record["identity"]["gpu"] == ["cpu"]
        print_explanation(record["explain"], plain_s, _rounds_begun(record["steps"]), console, is_cpu=is_cpu)
    print_assumptions(console)


def _kept(kept: Mapping[str, Any], num_begun: int) -> str:
    if kept["ci95"] is None:
        return f"{kept['value']:.3f}, of one steady pair of blocks, which gives no interval"
    low, high = kept["ci95"]
    of = _counted(kept["num_pairs"], num_begun, "pairs of blocks")
    return f"{kept['value']:.3f} (95 % interval {low:.3f} to {high:.3f}), {of}"


def _rounds_begun(steps: Sequence[Mapping[str, Any]]) -> int:
    """Of the run's blocks, one of each arm to a round."""
    arm_of = {int(step["block"]): step["arm"] for step in steps if step["block"] is not None}
    return max(arm_of) // len(set(arm_of.values())) + 1


def _counted(num: int, num_begun: int, noun: str) -> str:
    return f"{num} {noun}" if num == num_begun else f"{num} {noun} (of {num_begun} begun: those whole and steady)"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms"


def _with_ci(seconds: float, ci95: Sequence[float] | None) -> str:
    return _ms(seconds) if ci95 is None else f"{seconds * 1e3:.1f} ± {(ci95[1] - ci95[0]) / 2 * 1e3:.1f} ms"
