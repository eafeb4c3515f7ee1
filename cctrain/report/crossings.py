"""What processes crossed between CPU and GPU, as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from cctrain.emulation.profile import ASSUMED, NOT_EMULATED, Profile

_COUNTS = ("launches", "graph_launches", "graph_nodes", "waits", "collectives", "allocs_host", "allocs_device")


def print_crossings(crossings: Mapping[int, Mapping[str, Any]], profile: Profile | None) -> None:
    """Print the counts of each process, by its id, and what `profile` made it wait."""
    console = Console(soft_wrap=True, markup=False)
    if not crossings:
        console.print("no process made a CUDA call that could be met; lines of `cctrain: emulation` above say why not")
        return
    title = f"crossings under the tolls of {profile.name}, emulated" if profile else "crossings"
    table = Table("per process", *(str(pid) for pid in crossings), title=title)
    for column in table.columns[1:]:
        column.justify = "right"
    for name in _COUNTS:
        table.add_row(name.replace("_", " "), *(f"{counts[name]:,}" for counts in crossings.values()))
    for kind in next(iter(crossings.values()))["copies"]:
        cells = [counts["copies"][kind] for counts in crossings.values()]
        name = f"copies {kind.replace('_', ', ')}"
        table.add_row(name, *(f"{cell['count']:,} of {cell['bytes'] / 1e6:,.1f} MB" for cell in cells))
    table.add_row("time in those calls", *(f"{counts['in_driver_s']:.3f} s" for counts in crossings.values()))
    if profile:
        for name in profile.classes():
            waited = (counts["injected_s"][name] for counts in crossings.values())
            table.add_row(f"injected: {name.replace('_', ' ')}", *(f"{seconds:.3f} s" for seconds in waited))
    console.print(table)
    if profile:
        print_assumptions(console)


def print_assumptions(console: Console) -> None:
    """What an emulated figure rests on, and what is not in it."""
    console.print(f"assumed: {'; '.join(ASSUMED)}", style="dim")
    console.print(f"not emulated: {'; '.join(NOT_EMULATED)}", style="dim")
