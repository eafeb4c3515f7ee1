"""What has become of every trial, on disk: lines of JSON, only ever added to, each on the disk before the next step.

    {"event": "opened", ...}    a campaign started here: when, by which process, the mode of the machine
    {"event": "begin", ...}     a trial is about to start: `key`, and `token`, the end of its run directory's name
    {"event": "end", ...}       what became of it: `outcome` complete, failed, interrupted or killed;
                                `run`, `why`, `seconds`

A begin without an end was killed with the campaign; its token leads to whatever run directory it left. Kills are no
failures, and are counted apart: the same command tries the trial again. But it may be the trial that takes the campaign
down, and would on every start: after a second kill the others come first, and after MOST_KILLS it is given up.

One process writes at a time: it holds a lock on the file, and so does the trial it runs, so that nobody starts beside
what a killed campaign left.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cctrain.errors import RequestError
from cctrain.processes import this_process

_LOCK_WAIT_S = 10.0
"""How long a trial of a killed campaign gets to die."""
KILLED = "killed"
"""The outcome of a trial that ended with its campaign."""
MOST_FAILURES = 2
"""A failing trial is retried once."""
MOST_KILLS = 5
"""More than somebody comes to who stops the campaign at bad moments, or a machine that goes down now and then."""


_FIRST = '{"event": '
"""How a ledger begins, also one whose first line was cut short."""


@dataclass(slots=True)
class Standing:
    """What the ledger says of one trial."""

    run: str | None = None
    """Name of the complete run's directory."""
    seconds: float | None = None
    """How long that took."""
    failures: list[str] = field(default_factory=list)
    """Why it failed, each time."""
    kills: list[str] = field(default_factory=list)
    """What is known of each time that it ended with the campaign."""
    open_tokens: list[str] = field(default_factory=list)
    """Begun, and not ended."""

    @property
    def is_failed(self) -> bool:
        """Whether it is given up."""
        return self.run is None and (len(self.failures) >= MOST_FAILURES or self.is_deadly)

    @property
    def is_deadly(self) -> bool:
        """Whether the campaign was killed during it so often that it may be what kills it."""
        return len(self.kills) >= MOST_KILLS

    @property
    def why(self) -> str:
        """Why it is given up, or failed last."""
        return (self.kills if self.is_deadly else self.failures)[-1]

    def try_again(self) -> None:
        """Forget why it was given up."""
        self.failures.clear()
        self.kills.clear()

    @property
    def is_settled(self) -> bool:
        """Whether there is nothing left to do."""
        return self.run is not None or self.is_failed


def read(path: Path, verb: str = "campaign") -> tuple[list[dict[str, Any]], list[int]]:
    """The events, and the numbers of the lines that are none: a crash may leave half a line.

    Raises RequestError for what cannot be read, and for a file of something else, which nothing may be added to."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    except OSError as error:
        raise RequestError(f"{verb}.ledger={path} cannot be read ({error})") from error
    events, damaged = [], []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        event = _event(line)
        if event is None:
            damaged.append(number)
        else:
            events.append(event)
    if damaged and not events and not text.startswith(_FIRST[: len(text)]):
        raise RequestError(f"{verb}.ledger={path} is no ledger, as no line of it shows: give a file of its own")
    return events, damaged


def _event(line: str) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    if not isinstance(event, dict) or event.get("event") not in ("opened", "begin", "end"):
        return None
    is_of_a_trial = event["event"] != "opened"
    return None if is_of_a_trial and not all(isinstance(event.get(name), str) for name in ("key", "token")) else event


def began_in(events: Iterable[Mapping[str, Any]], keys: Container[str]) -> str | None:
    """The mode of the machine when the first of the trials `keys` began; None where none has: other campaigns may have
    been here before."""
    mode = None
    for event in events:
        if event["event"] == "opened":
            mode = str(event.get("mode"))
        elif event["event"] == "begin" and event["key"] in keys:
            return mode
    return None


def standings(events: Iterable[dict[str, Any]]) -> dict[str, Standing]:
    """By key. A token counts once, however often its end was written."""
    found: dict[str, Standing] = {}
    ended: set[str] = set()
    for event in events:
        if event["event"] == "opened":
            continue
        one = found.setdefault(event["key"], Standing())
        if event["event"] == "begin":
            one.open_tokens.append(event["token"])
            continue
        if event["token"] in ended:
            continue
        ended.add(event["token"])
        one.open_tokens = [token for token in one.open_tokens if token != event["token"]]
        if event.get("outcome") == "complete":  # a second one is of a run that took the place of a lost one
            one.run, one.seconds = str(event.get("run")), event.get("seconds")
        elif event.get("outcome") in ("failed", KILLED):
            (one.kills if event["outcome"] == KILLED else one.failures).append(str(event.get("why")))
    return found


class Ledger:
    """The file, open for its one writer; a context manager."""

    def __init__(self, path: Path, lock_wait_s: float = _LOCK_WAIT_S, *, verb: str = "campaign") -> None:
        """`verb` names its setting in errors. Raises RequestError where it cannot be written, or another campaign
        writes it."""
        self.path, self.verb = path, verb
        self._name = f"{verb}.ledger={path}"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise RequestError(f"{self._name} cannot be written ({error})") from error
        try:
            self._lock(lock_wait_s)
            self.events, self.damaged = read(path, verb)
            self._end_last_line()
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    @property
    def descriptor(self) -> int:
        """For the trial to inherit, and with it the lock."""
        return self._file

    def append(self, event: str, **content: Any) -> None:
        """Write one line; it is on the disk when this returns."""
        at = datetime.now(UTC).isoformat(timespec="seconds")
        line = {"event": event, "at": at, **content}
        data = (json.dumps(line, allow_nan=False, ensure_ascii=False) + "\n").encode(errors="replace")
        try:
            while data:
                data = data[os.write(self._file, data) :]
            os.fsync(self._file)
        except OSError as error:
            raise RequestError(f"{self._name} cannot be written ({error})") from error
        self.events.append(line)

    def opened(self, mode: str, keys: Container[str] = ()) -> str:
        """Note that a campaign of the trials `keys` goes on here. Returns the mode of the machine that it began in."""
        self.append("opened", mode=mode, **this_process())
        return began_in(self.events, keys) or mode

    def _lock(self, wait_s: float) -> None:
        until = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise RequestError(self._taken()) from None
                time.sleep(0.1)

    def _taken(self) -> str:
        writers = [event for event in read(self.path, self.verb)[0] if event["event"] == "opened"]
        who = f", process {writers[-1].get('pid')} on {writers[-1].get('host')}" if writers else ""
        return (
            f"{self._name}: another {self.verb} is at it{who}. Wait for its end, or give this one a ledger of its own "
            f"with {self.verb}.ledger=FILE"
        )

    def _end_last_line(self) -> None:
        """What follows half a line must not become part of it."""
        size = os.fstat(self._file).st_size
        if size and os.pread(self._file, 1, size - 1) != b"\n":
            os.write(self._file, b"\n")
            os.fsync(self._file)
