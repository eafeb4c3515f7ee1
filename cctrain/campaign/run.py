"""Runs what is left of a campaign: each trial a process of its own, begun and ended in the ledger.

A trial counts by its record on disk, which its token finds, and not by what this process saw: so it does not matter at
which moment this process is killed. What dies with it is the trial under way, which is then run again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import secrets
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, Protocol

from cctrain.campaign.ledger import KILLED, Ledger, Standing, standings
from cctrain.campaign.plan import Trial
from cctrain.errors import PlatformError
from cctrain.finish import finish_abandoned
from cctrain.processes import die_with_parent, ignore_stops
from cctrain.redaction import redacted
from cctrain.rundir import TRIAL_VARIABLE

_STOP_S = 90.0
"""How long a stopped trial gets to write its partial record."""
_LOOK_S = 0.5
"""How often what shows the trial under way is asked to."""
_MOST_WHY = 500


class Watcher(Protocol):
    """Shows how far the campaign is."""

    def begins(self, trial: Trial, attempt: int) -> None:
        """A trial starts."""

    def runs(self, run_dir: Path) -> None:
        """It goes on, and writes there."""

    def ended(self, ending: Ending, num_left: int, seconds_left: float | None) -> None:
        """What became of it, and what is left of all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """What became of an attempt."""

    outcome: str
    """complete, failed, or interrupted: by whoever stopped the campaign, which is no failure."""
    run: str | None
    """Name of the run directory; None where none was made."""
    why: str | None
    seconds: float | None = None


def is_complete(run_dir: Path) -> bool:
    """Whether a whole record lies there."""
    return _is_whole(_record(run_dir))


def _is_whole(record: Mapping[str, Any]) -> bool:
    return record.get("status") == "complete"


def _record(run_dir: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        record = json.loads((run_dir / "run.json").read_text(encoding="utf-8"))
        return record if isinstance(record, dict) else {}
    return {}


def _left_by(run_root: Path, token: str) -> tuple[str | None, dict[str, Any]]:
    """The run directory's name of the attempt with this token, and its record; one that ended early has neither."""
    found = next(run_root.glob(f"*-{token}"), None)
    record = _record(found) if found else {}
    return (found.name if found and record else None), record


def settle_killed(ledger: Ledger, run_root: Path) -> int:
    """End in the ledger whatever was begun and not ended. Returns how many attempts that were."""
    finish_abandoned(run_root)
    num = 0
    for key, standing in standings(ledger.events).items():
        for token in standing.open_tokens:
            run, record = _left_by(run_root, token)
            outcome, why = ("complete", None) if _is_whole(record) else (KILLED, _why_killed(ledger))
            ledger.append("end", key=key, token=token, outcome=outcome, run=run, why=why, seconds=None)
            num += 1
    return num


def _why_killed(ledger: Ledger) -> str:
    """What can be told of it afterwards: whether the machine that the campaign was on has been started anew since."""
    opened = [event for event in ledger.events if event["event"] == "opened"]
    starts = [(event.get("host"), str(event.get("process_start"))) for event in opened]
    what = f"the {ledger.verb} was killed while it ran, from outside or for host memory"
    if len(starts) > 1:
        (host, before), (host_now, now) = starts[-2:]
        if host == host_now and before.partition(":")[0] != now.partition(":")[0]:
            what = "the machine went down while it ran"
    return f"{what}; if that was not its doing, {ledger.verb}.retry_failed=true tries it again"


def standing_of(
    trials: Mapping[str, Trial], ledger_events: list[dict[str, Any]], run_root: Path
) -> dict[str, Standing]:
    """Of every trial by key; a run whose directory is gone, or no longer whole, counts as not run."""
    found = standings(ledger_events)
    kept = {key: found.get(key, Standing()) for key in trials}
    for standing in kept.values():
        if standing.run is not None and not is_complete(run_root / standing.run):
            standing.run = None
    return kept


@dataclass(slots=True)
class Campaign:
    """What is left to run, on this machine, in the order of the plan."""

    trials: Mapping[str, Trial]
    """By key, in order."""
    standing: dict[str, Standing]
    ledger: Ledger
    run_root: Path
    command: Callable[[Trial], Sequence[str]]
    watcher: Watcher
    deadline_s: float | None = None
    """The longest an attempt may take; it is then ended, and has failed."""

    def run(self, mode: str) -> str | None:
        """Run all that a machine in this `mode` can. Returns the mode that the rest waits for, None where none does.

        Of a phase, trials during which the campaign was killed more than once come last: the others are done before one
        that may be what kills it does so again. After the first kill, which is chance as a rule, it keeps its turn.

        Raises KeyboardInterrupt once the trial under way has ended, and PlatformError where one could not start here.
        """
        for phase in sorted({trial.phase for trial in self.trials.values()}):
            left = [key for key, one in self.trials.items() if one.phase == phase and not self.standing[key].is_settled]
            for key in sorted(left, key=lambda key: max(1, len(self.standing[key].kills))):
                trial = self.trials[key]
                if trial.machine not in (None, mode):
                    return trial.machine
                while not self.standing[key].is_settled:
                    self.attempt(key)
        return None

    @property
    def num_left(self) -> int:
        """Trials that are neither complete nor given up."""
        return sum(not one.is_settled for one in self.standing.values())

    def seconds_left(self) -> float | None:
        """By how long trials took so far, of the same settings where there are any; None where nothing is known."""
        known = {key: one.seconds for key, one in self.standing.items() if one.seconds}
        if not known:
            return None
        own: dict[tuple[str, ...], list[float]] = {}
        for key, seconds in known.items():
            own.setdefault(self.trials[key].settings, []).append(seconds)
        mean = sum(known.values()) / len(known)
        left = [trial.settings for key, trial in self.trials.items() if not self.standing[key].is_settled]
        return sum(sum(own[each]) / len(own[each]) if each in own else mean for each in left)

    def attempt(self, key: str) -> None:
        """Run the trial of this key once, whatever becomes of it, which its standing then says.

        Raises KeyboardInterrupt and PlatformError like `run`.
        """
        trial, standing, token = self.trials[key], self.standing[key], secrets.token_hex(4)
        attempt = len(standing.failures) + len(standing.kills) + 1
        what = {"settings": redacted(trial.settings), "repeat": trial.repeat, "attempt": attempt}
        self.ledger.append("begin", key=key, token=token, **what)
        self.watcher.begins(trial, attempt)
        begin, is_stopped, is_late, code = time.monotonic(), False, False, None
        with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as complained:
            process = self._start(trial, token, said, complained)
            try:
                code = self._watch(process, token)
            except subprocess.TimeoutExpired:
                is_late = True
                is_stopped = _stop(process)
            except KeyboardInterrupt:
                is_stopped = True
                ignore_stops()
                _stop(process)
            error = _error(said, complained, process.returncode)
        run, record = _left_by(self.run_root, token)
        is_excused = is_stopped or code == PlatformError.exit_code
        ending = _ending(run, record, error, time.monotonic() - begin, is_excused=is_excused)
        if is_late and ending.outcome == "failed":
            ending = dataclasses.replace(
                ending, why=f"ended after its deadline of {self.deadline_s:g} s ({ending.why})"
            )
        self.ledger.append(
            "end",
            key=key,
            token=token,
            outcome=ending.outcome,
            run=ending.run,
            why=ending.why,
            seconds=ending.seconds and round(ending.seconds, 3),
        )
        if ending.outcome == "complete":
            standing.run, standing.seconds = ending.run, ending.seconds
        elif ending.outcome == "failed":
            standing.failures.append(str(ending.why))
        self.watcher.ended(ending, self.num_left, self.seconds_left())
        if is_stopped:
            raise KeyboardInterrupt
        if ending.outcome == "interrupted":
            raise PlatformError(f"{trial.label}: {ending.why}")

    def _watch(self, process: subprocess.Popen[bytes], token: str) -> int:
        """The trial's exit code, at its end. Raises TimeoutExpired after the deadline."""
        begin, run_dir = time.monotonic(), None
        while True:
            left_s = math.inf if self.deadline_s is None else begin + self.deadline_s - time.monotonic()
            try:
                return process.wait(min(_LOOK_S, max(0.0, left_s)))
            except subprocess.TimeoutExpired:
                if left_s <= _LOOK_S:
                    raise
            run_dir = run_dir or next(self.run_root.glob(f"*-{token}"), None)
            if run_dir:
                self.watcher.runs(run_dir)

    def _start(self, trial: Trial, token: str, said: IO[bytes], complained: IO[bytes]) -> subprocess.Popen[bytes]:
        """In a session of its own, so that a Ctrl-C reaches us and not it, ending when we do."""
        return subprocess.Popen(
            list(self.command(trial)),
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=complained,
            env={**os.environ, TRIAL_VARIABLE: token},
            pass_fds=(self.ledger.descriptor,),
            start_new_session=True,
            preexec_fn=partial(die_with_parent, os.getpid()),  # noqa: PLW1509 - other threads are NumPy's, which sleep
        )


def _stop(process: subprocess.Popen[bytes]) -> bool:
    """Have the trial write its partial record. Returns whether a Ctrl-C came meanwhile."""
    process.terminate()  # and no SIGINT, which a campaign started in the background hands down as ignored
    is_stopped = False
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        pass
    except KeyboardInterrupt:
        is_stopped = True
        ignore_stops()
    if process.poll() is None:
        process.kill()
        process.wait()
    return is_stopped


def _ending(run: str | None, record: Mapping[str, Any], error: str, seconds: float, *, is_excused: bool) -> Ending:
    """By the record, where there is one; `error` is what the trial itself said."""
    if _is_whole(record):
        return Ending(outcome="complete", run=run, why=None, seconds=seconds)
    why = str(record.get("failure") or error)
    if why == "still running":  # killed before it could say why
        why = error
    return Ending(
        outcome="interrupted" if is_excused else "failed", run=run, why=redacted(why)[:_MOST_WHY], seconds=seconds
    )


def _error(said: IO[bytes], complained: IO[bytes], code: int | None) -> str:
    """What a trial that left no record said last."""
    for file in (said, complained):
        file.seek(0)
    lines = said.read().decode(errors="replace").splitlines()
    with contextlib.suppress(ValueError, IndexError, AttributeError):
        error = json.loads(lines[-1]).get("error")
        if error:
            return str(error)
    last = complained.read().decode(errors="replace").strip().splitlines()
    return last[-1] if last else f"it ended with exit code {code} and said nothing"
