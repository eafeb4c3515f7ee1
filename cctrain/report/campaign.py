"""A campaign for people: its plan as a table, and how far it is, on stderr."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

from cctrain.campaign.ledger import Standing
from cctrain.campaign.plan import Trial
from cctrain.campaign.run import Ending
from cctrain.console import console_of
from cctrain.report.trial import TrialProgress

_WIDTH = 120


def state(standing: Standing) -> str:
    """One word of a trial."""
    return "complete" if standing.run else "failed" if standing.is_failed else "to do"


def print_plan(trials: Mapping[str, Trial], standing: Mapping[str, Standing]) -> None:
    """Every trial in its order, to stdout."""
    table = Table(title="The campaign, in its order")
    for column in ("", "trial", "machine", "state"):
        table.add_column(column, justify="right" if not column else "left")
    phase = 0
    for number, (key, trial) in enumerate(trials.items(), 1):
        if trial.phase != phase:
            table.add_section()
            phase = trial.phase
        machine = f"CC {trial.machine}" if trial.machine else "any"
        table.add_row(str(number), trial.label, machine, state(standing[key]))
    console_of(width=_WIDTH).print(table)


def duration(seconds: float) -> str:
    """In the unit that fits."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class Progress:
    """Lines of a trial: what starts, how far it is, and what became of it with the time left of the whole."""

    def __init__(self, num_trials: int, num_left: int) -> None:
        self._num_trials, self._num_left = num_trials, num_left
        self._console = Console(stderr=True, markup=False, emoji=False, highlight=False)
        self._trial = TrialProgress(self._console)

    def begins(self, trial: Trial, attempt: int) -> None:
        """A trial starts."""
        number = self._num_trials - self._num_left + 1
        again = ", once more" if attempt > 1 else ""
        self._console.print(f"trial {number} of {self._num_trials}: {trial.label}{again}", soft_wrap=True)

    def runs(self, run_dir: Path) -> None:
        """It goes on, and writes there."""
        self._trial.show(run_dir)

    def ended(self, ending: Ending, num_left: int, seconds_left: float | None) -> None:
        """It ended."""
        self._trial.end()
        self._num_left = num_left
        took = "" if ending.seconds is None else f" after {duration(ending.seconds)}"
        why = f" ({ending.why})" if ending.why else ""
        left = "" if seconds_left is None or not num_left else f", about {duration(seconds_left)}"
        self._console.print(f"    {ending.outcome}{took}{why}; {num_left} left{left}", soft_wrap=True)
