"""A search for people and for scripts: its plan, its progress, its trials as a table, what to copy, and the facts."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cctrain.campaign.plan import Trial
from cctrain.campaign.run import Ending
from cctrain.console import console_of
from cctrain.emulation.profile import NO_GPU, emulated_note
from cctrain.ratios import ratio_of_runs
from cctrain.report.campaign import duration
from cctrain.report.trial import TrialProgress
from cctrain.report.words import percent
from cctrain.tune.point import Observation
from cctrain.tune.search import Problem, Result, is_allowed
from cctrain.tune.space import joined

_WIDTH = 140
_MOST_PLANNED = 60
SETTING = "setting: micro-batches a step x rows of each (x tokens of a row)"
_COLUMNS = ("trial", "setting", "real tokens/s/GPU", "kept", "tokens a step", "peak GiB", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a search came to, with what it is told by."""

    recipe: str
    mode: str
    arguments: tuple[str, ...]
    """Of the recipe as it stands."""
    problem: Problem
    result: Result
    pairs: tuple[tuple[Observation, Observation], ...]
    """Runs of the recipe as it stands and of the best; none where these are the same."""
    chosen: tuple[str, ...] | None
    """Settings to add; empty where the recipe is best as it stands, None where nothing meets the limits."""

    @property
    def gain(self) -> tuple[float, tuple[float, float] | None] | None:
        """Rate of the best over that of the recipe as it stands, with its 95 % interval over runs; None where unknown,
        because the recipe as it stands did not run, no further pair did, or nothing was found."""
        if self.result.best and self.result.best.point == self.problem.base:
            return 1.0, None
        rates = [[one.rate or 0.0 for one in side] for side in zip(*self.pairs, strict=True)]
        return ratio_of_runs(rates[0], rates[1], is_paired=True) if rates else None

    @property
    def is_gain_unclear(self) -> bool:
        """Whether runs tell that there may be none."""
        ci95 = self.gain and self.gain[1]
        return bool(ci95 and ci95[0] <= 1 <= ci95[1])

    @property
    def command(self) -> str:
        """The whole command of what was found."""
        return shlex.join(["python", "-m", "cctrain", *joined(self.arguments, self.chosen or ())])


class Progress:
    """Lines of a trial, on stderr: what starts, how far it is, and what became of it with what may be left."""

    def __init__(self, max_trials: int, num_repeats: int) -> None:
        self._max_trials, self._num_repeats = max_trials, num_repeats
        self._num_seen, self._is_new = 0, False
        self._seconds: list[float] = []
        self._console = Console(stderr=True, markup=False, emoji=False, highlight=False)
        self._trial = TrialProgress(self._console)

    def begins(self, trial: Trial, attempt: int) -> None:
        """A trial starts."""
        self._is_new = True
        of = f"trial {self._num_seen + 1} of at most {self._max_trials}" if trial.repeat == 1 else "once more"
        self._console.print(f"{of}: {trial.label}", soft_wrap=True)

    def runs(self, run_dir: Path) -> None:
        """It goes on, and writes there."""
        self._trial.show(run_dir)

    def ended(self, ending: Ending, num_left: int, seconds_left: float | None) -> None:
        """It ended; what a campaign would have left says nothing of a search."""
        self._trial.end()
        self._seconds += [ending.seconds] if ending.seconds else []
        why = f" ({ending.why})" if ending.why else ""
        took = f" after {duration(ending.seconds)}" if ending.seconds else ""
        self._console.print(f"    {ending.outcome}{took}{why}", soft_wrap=True)

    def saw(self, one: Observation) -> None:
        """What a trial came to, whether it ran now or stood in the ledger."""
        self._num_seen += 1
        rate = f"{one.rate:,.0f} real tokens/s/GPU" if one.rate else one.outcome
        more = self._left() if self._is_new else ", from the ledger" if one.run else ""
        self._is_new = False
        self._console.print(f"    {one.point.label}: {rate}{more}", soft_wrap=True)

    def _left(self) -> str:
        """What is left to run: nothing is known of it while trials are read from the ledger."""
        left = self._max_trials - self._num_seen + self._num_repeats
        mean = sum(self._seconds) / len(self._seconds) if self._seconds else None
        time_left = f", about {duration(mean * left)}" if mean and left else ""
        return f"; at most {left} left{time_left}"


def print_plan(problem: Problem) -> None:
    """What may be tried, to stdout."""
    table = Table(title=f"{len(problem.points)} settings; the first trial is {problem.base.label}")
    for column in ("micro-batches x rows x tokens", "memory by the estimate, GiB"):
        table.add_column(column, justify="left" if column.startswith("micro") else "right")
    for point in problem.points[:_MOST_PLANNED]:
        memory = problem.works[point].memory_gib
        table.add_row(point.label, f"{sum(memory):.1f}" if memory else "unknown")
    more = len(problem.points) - _MOST_PLANNED
    table.caption = f"and {more} more" if more > 0 else None
    console_of(width=_WIDTH).print(table)


def trials(
    problem: Problem, seen: Sequence[Observation], best: Observation | None
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Columns, and a row a trial, for the terminal and the page; without columns of which nothing is known."""
    whole = [
        (
            str(number),
            one.point.label,
            f"{one.rate:,.0f}" if one.rate else "",
            f"{one.keep_ratio:.3f}" if one.keep_ratio else "",
            f"{one.real_tokens:,.0f}" if one.real_tokens else "",
            f"{one.peak_gib:.1f}" if one.peak_gib else "",
            _remark(problem, one, best),
        )
        for number, one in enumerate(seen, 1)
    ]
    known = [index for index, cells in enumerate(zip(*whole, strict=True)) if any(cells)]
    return tuple(_COLUMNS[index] for index in known), [tuple(row[index] for index in known) for row in whole]


def _remark(problem: Problem, one: Observation, best: Observation | None) -> str:
    words = ["the recipe as it stands"] if one.point == problem.base else []
    words += ["best"] if one is best else []
    if not one.is_complete:
        words += [one.outcome] + ([one.why or ""] if one.outcome == "failed" else [])
    elif not is_allowed(problem, one):
        words.append("beyond the limits")
    if one.is_steady is False:
        words.append("not steady")
    return ", ".join(words)


def note(seen: Sequence[Observation], *, is_cpu: bool = False) -> str | None:
    """What emulated figures rest on; None where there are none."""
    return emulated_note(is_cpu=is_cpu) if any(one.keep_ratio is not None for one in seen) else None


def print_trials(problem: Problem, seen: Sequence[Observation], best: Observation | None = None) -> None:
    """The trials, to stdout."""
    if not seen:
        return
    table = Table(title="Trials", caption=". ".join(filter(None, (SETTING, note(seen)))))
    columns, rows = trials(problem, seen, best)
    for column in columns:
        table.add_column(column, justify="left" if column in ("setting", "") else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row), style="bold" if best and "best" in row[-1].split(", ") else None)
    console_of(width=_WIDTH).print(table)


def print_answer(answer: Answer) -> None:
    """The trials, why the search stopped, what to copy and what it gains."""
    print_trials(answer.problem, answer.result.seen, answer.result.best)
    console = console_of(width=_WIDTH)
    for line in (f"stopped: {answer.result.why}", *sentences(answer)):
        console.print(line, soft_wrap=True)


def sentences(answer: Answer) -> list[str]:
    """What was found, in words, and what is to be borne in mind."""
    return [*_found(answer), *([f"note: {NO_GPU}"] if is_of_cpu(answer) else [])]


def is_of_cpu(answer: Answer) -> bool:
    """Whether its tolls were the stand-in's."""
    return answer.mode == "emulated" and answer.problem.memory_gib is None


def _found(answer: Answer) -> list[str]:
    best = answer.result.best
    if best is None:
        return [why_none(answer)]
    if not answer.chosen:
        return [f"the recipe is the {fastest(answer)}: there is nothing to add"]
    lines = [f"add: {shlex.join(answer.chosen)}", _gain(answer)]
    base = next((one for one in answer.result.seen if one.point == answer.problem.base), None)
    if base and base.real_tokens and best.real_tokens and abs(best.real_tokens / base.real_tokens - 1) > 0.02:
        lines.append(
            f"note: a step then has {best.real_tokens:,.0f} real tokens, and has {base.real_tokens:,.0f} as the recipe "
            "stands: that is another training"
        )
    return lines


def fastest(answer: Answer) -> str:
    """That the recipe is so, of how many: why no more were tried is said beside it."""
    num_seen = len({one.point for one in answer.result.seen})
    return f"fastest as it stands, of {num_seen} tried of {len(answer.problem.points)} settings"


def _gain(answer: Answer) -> str:
    if answer.gain is None:
        has_run = any(one.point == answer.problem.base and one.is_complete for one in answer.result.seen)
        why = "none of the further pairs of runs completed" if has_run else "the recipe as it stands did not run"
        return f"gain: unknown, because {why}"
    ratio, ci95 = answer.gain
    times = f"gain: {ratio:.3f} times the real tokens/s/GPU of the recipe as it stands"
    if ci95 is None:
        return f"{times}, from one run each and so without an interval (tune.repeats=3 gives one)"
    unclear = ": unclear whether it is one, as that holds 1 (more tune.repeats= tell)" if answer.is_gain_unclear else ""
    interval = f"95 % interval {ci95[0]:.3f} to {ci95[1]:.3f}"
    return f"{times}, {interval} over {len(answer.pairs)} further pairs of runs{unclear}"


def why_none(answer: Answer) -> str:
    """Why nothing can be recommended, and which setting to change."""
    complete = [one for one in answer.result.seen if one.is_complete]
    if not complete:
        last = answer.result.seen[-1]
        return f"no trial completed (tune.retry_failed=true tries them again); the last one: {last.why or last.outcome}"
    limits = [f"tune.memory_margin={answer.problem.memory_margin:g}"]
    if answer.problem.min_keep:
        kept = max(one.keep_ratio or 0.0 for one in complete)
        limits.append(f"tune.min_keep={answer.problem.min_keep:g} (the most that was kept is {percent(kept)})")
    return f"none of the {len(complete)} settings that ran meets the limits: {', '.join(limits)}"


def facts(answer: Answer) -> dict[str, Any]:
    """For scripts."""
    best, gain = answer.result.best, answer.gain
    return {
        "recipe": answer.recipe,
        "mode": answer.mode,
        "emulated": note(answer.result.seen),
        "chosen": None if answer.chosen is None else list(answer.chosen),
        "command": answer.command if answer.chosen is not None else None,
        "real_tokens_per_s_per_gpu": best and best.rate,
        "keep_ratio": best and best.keep_ratio,
        "gain": gain and gain[0],
        "gain_ci95": gain and gain[1],
        "num_pairs": len(answer.pairs),
        "num_trials": len(answer.result.seen),
        "num_settings": len(answer.problem.points),
        "why": answer.result.why,
        "trials": [dataclasses.asdict(one) for one in answer.result.seen],
    }
