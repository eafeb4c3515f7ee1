"""Tolls for people: the table of a run, the table of a difference, and a progress bar on stderr."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table

from cctrain.console import console_of
from cctrain.emulation.profile import emulated_note
from cctrain.tolls.diff import Difference
from cctrain.tolls.published import HARDWARE, published_beside
from cctrain.tolls.record import Facts, TollsRecord
from cctrain.tolls.replicates import NUM_PROCESSES

_CAPTION = (
    f"undisturbed, the fastest tenth of the best of {NUM_PROCESSES} processes; interval: of any process. "
    "B300, Hopper, H100: published, where defined alike; CC off -> on, x: on over off, +: what CC adds (sources: "
    "cctrain/tolls/published.py)"
)
_PLAIN = "without tolls: in turns with the others, in the same processes, which the injection library meets too"
_UNPAID = "no GPU: nothing here pays a toll"
_DIFF_CAPTION = (
    "on - off, undisturbed, with its 95 % interval from process to process; machines and days may differ by more"
)


def print_tolls(record: TollsRecord, console: Console | None = None) -> None:
    """Print what was measured; to stdout where no console is given."""
    num_gpus = record.identity["num_gpus"]
    machine = f"{num_gpus} x {record.identity['gpu']}" if num_gpus else "no GPU"
    tolls = f", tolls of {record.tolls['name']}" if record.tolls else ""
    value = "under tolls" if record.tolls else "measured"
    beside = _PLAIN if num_gpus else _UNPAID
    caption = f"{value}: {_CAPTION}" + (f". {beside}. {emulated_note()}" if record.tolls else "")
    table = Table(title=f"tolls  ·  {machine}  ·  CC {record.mode}{tolls}", caption=caption)
    measured = (*(("without tolls",) if record.tolls else ()), value, "95 % interval")
    for column in ("toll", "of", *measured, *HARDWARE):
        table.add_column(column, justify="right" if column in measured else "left", overflow="fold")
    for reading in record.readings:
        published = [published_beside(reading, hardware) for hardware in HARDWARE]
        values = [f"{number(reading.value)} {reading.unit}"]
        if record.tolls:  # without plain_value it is of the host alone, which calls no CUDA
            plain = reading.plain_value
            values = [*values, "pays none"] if plain is None else [number(plain), *values]
        table.add_row(reading.name, describe(reading.conditions), *values, _interval(reading.interval), *published)
    lines = [f"failed: {family}: {why}" for family, why in record.failed.items()]
    for why in dict.fromkeys(record.waived.values()):
        families = ", ".join(family for family, reason in record.waived.items() if reason == why)
        lines.append(f"waived: {families}: {why}")
    _print(table, lines, console)


def print_differences(tolls: Sequence[Difference], modes: tuple[str, str], console: Console | None = None) -> None:
    """Print what CC costs each operation."""
    table = Table(title="tolls  ·  what CC adds to a time or takes from a rate", caption=_DIFF_CAPTION)
    columns = ("toll", "of", "unit", f"CC {modes[0]}", f"CC {modes[1]}", "on - off", "95 % interval", "on / off")
    for column in columns:
        table.add_column(column, justify="left" if column in columns[:3] else "right", overflow="fold")
    for toll in tolls:
        values = [number(toll.off.value), number(toll.on.value), number(toll.toll), _interval(toll.interval)]
        ratio = "" if toll.ratio is None else f"{number(toll.ratio)}x"
        row = [toll.off.name, describe(toll.off.conditions), toll.off.unit, *values, ratio]
        table.add_row(*row, style="dim" if toll.is_noise else None)
    _print(table, [], console)


def _print(table: Table, lines: Sequence[str], console: Console | None) -> None:
    console = console_of(console)
    console.print(table)
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False)


def number(value: float) -> str:
    """Three digits or more."""
    size = abs(value)
    return f"{value:,.0f}" if size >= 1000 else f"{value:.{1 if size >= 100 else 2 if size >= 1 else 3}f}"


def _interval(interval: tuple[float, float] | None) -> str:
    return "none" if interval is None else f"{number(interval[0])} to {number(interval[1])}"


def describe(conditions: Facts) -> str:
    """The conditions in a few words: words as they are, numbers with their names, bytes in binary units."""
    words = []
    for key, value in conditions.items():
        if key == "bytes" and isinstance(value, int):
            words.append(size(value))
        else:
            words.append(str(value) if isinstance(value, str) else f"{key} {value}")
    return ", ".join(words)


def size(num_bytes: int) -> str:
    """In binary units."""
    unit = max((unit for unit in (0, 10, 20, 30) if num_bytes >> unit), default=0)
    return f"{num_bytes / (1 << unit):g} {('B', 'KiB', 'MiB', 'GiB')[unit // 10]}"


class Progress:
    """A bar over the families on stderr, silent where that is no terminal. It has no thread: `show` draws."""

    def __init__(self, families: Sequence[str]) -> None:
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._families = families
        self._bar = Bar(*columns, console=console, disable=not console.is_terminal, auto_refresh=False)
        self._task = self._bar.add_task("starting", total=len(families))

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, process: int, family: str | None) -> None:
        """Show which family is being measured, if one is."""
        if family:
            text = f"{family}, process {process + 1} of {NUM_PROCESSES}"
            self._bar.update(self._task, description=text, completed=self._families.index(family))
        self._bar.refresh()
