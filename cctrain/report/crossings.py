"""What processes crossed between CPU and GPU, as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from cctrain.console import Stdout
from cctrain.emulation.injector import has_paid
from cctrain.emulation.profile import ASSUMED, CLASSES, NOT_EMULATED, Profile

_COUNTS = ("launches", "graph_launches", "graph_nodes", "waits", "collectives", "allocs_host", "allocs_device")

Processes = Mapping[int, Mapping[str, Any]]
"""Process id -> its counts."""


def print_crossings(crossings: Processes, profile: Profile | None, console: Console | None = None) -> None:
    """Print the counts of each process, by its id, and what `profile` made it wait; to stdout without a console."""
    console = console or Stdout(soft_wrap=True, markup=False)
    if not crossings:
        console.print("no CUDA call was seen: none was made, or lines of `cctrain: emulation` above say why not")
        return
    rest = list(crossings.items())
    while rest:
        tables = (_table(dict(rest[:num]), profile) for num in range(len(rest), 0, -1))
        table = next(
            (each for each in tables if _width(each, console) <= console.width), _table(dict(rest[:1]), profile)
        )
        console.print(table)
        rest = rest[len(table.columns) - 1 :]
    if profile or any(map(has_paid, crossings.values())):
        print_assumptions(console)


def _width(table: Table, console: Console) -> int:
    """With nothing in it folded or cut."""
    return Measurement.get(console, console.options.update(max_width=10_000), table).maximum


def _table(crossings: Processes, profile: Profile | None) -> Table:
    paid = [name for name in CLASSES if any(counts["injected_s"][name] > 0 for counts in crossings.values())]
    title = f"crossings under the tolls of {profile.name}, emulated" if profile else "crossings"
    if paid and not profile:
        title += " under tolls that the program set, emulated"
    table = Table("per process", *(str(pid) for pid in crossings), title=title)
    for column in table.columns[1:]:
        column.justify = "right"
    for name in _COUNTS:
        table.add_row(name.replace("_", " "), *(f"{counts[name]:,}" for counts in crossings.values()))
    for kind in next(iter(crossings.values()))["copies"]:
        cells = [counts["copies"][kind] for counts in crossings.values()]
        name = f"copies {kind.replace('_', ', ')}"
        table.add_row(name, *(f"{cell['count']:,} of {cell['bytes'] / 1e6:,.1f} MB" for cell in cells))
    table.add_row("other copies, unpaid", *(f"{counts['other_copies']:,}" for counts in crossings.values()))
    table.add_row("time in those calls", *(f"{counts['in_driver_s']:.3f} s" for counts in crossings.values()))
    charged = profile.classes() if profile else ()
    for name in (name for name in CLASSES if name in paid or name in charged):
        waited = (counts["injected_s"][name] for counts in crossings.values())
        table.add_row(f"injected: {name.replace('_', ' ')}", *(f"{seconds:.3f} s" for seconds in waited))
    return table


def print_assumptions(console: Console) -> None:
    """What an emulated figure rests on, and what is not in it."""
    console.print(f"assumed: {'; '.join(ASSUMED)}", style="dim")
    console.print(f"not emulated: {'; '.join(NOT_EMULATED)}", style="dim")
