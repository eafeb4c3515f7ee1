"""The process that measures, as its parent sees it: started, followed, and replaced by another where it fails."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cctrain import launcher
from cctrain.redaction import redacted
from cctrain.samples import parse_line
from cctrain.tolls.families import SEVERAL_DEVICES
from cctrain.tolls.record import Reading, parse_reading
from cctrain.tolls.replicates import NUM_PROCESSES, over_processes

_DEADLINE_S = 120.0
"""A family says nothing while it measures, seconds on a GPU; the first one waits for torch's import, too."""
_POLL_S = 0.25
_WORKER = "cctrain.tolls.worker"
_LOG_LINES = 15

Command = Callable[[Sequence[str], Path], list[str]]
"""The argv that measures families and appends to a file."""
OnPoll = Callable[[str | None], None]
"""Hears which family is being measured, several times a second."""


@dataclass(slots=True)
class Outcome:
    """What came of the families."""

    readings: list[Reading] = field(default_factory=list)
    waived: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    log: str = ""
    """The last lines of every process that failed."""


def measure(
    families: Sequence[str],
    num_gpus: int,
    on_poll: Callable[[int, str | None], None],
    tolls: str | None = None,
    command: Command | None = None,
) -> Outcome:
    """Measure `families` in one process after the other, those between GPUs with a rank on each of `num_gpus`; under
    the profile `tolls` each reading also without it. `on_poll` hears, besides, which process it is, from 0. `command`
    is another one to measure with in one process."""
    flags = ["--tolls", tolls] if tolls else []

    def alone(names: Sequence[str], events: Path) -> list[str]:
        return [sys.executable, "-m", _WORKER, *flags, str(events), *names]

    def ranks(names: Sequence[str], events: Path) -> list[str]:
        return launcher.torchrun_command(num_gpus, _WORKER, *flags, str(events), *names)

    outcome = Outcome()
    for index in range(NUM_PROCESSES):
        left = [name for name in families if name not in (outcome.waived | outcome.failed)]
        several = [name for name in left if name in SEVERAL_DEVICES and num_gpus > 1]
        show = functools.partial(on_poll, index)
        follow([name for name in left if name not in several], command or alone, outcome, show)
        follow(several, ranks, outcome, show)
    outcome.readings = over_processes(outcome.readings)
    return outcome


def follow(
    families: Sequence[str],
    command: Command,
    outcome: Outcome,
    on_poll: OnPoll,
    deadline_s: float = _DEADLINE_S,
) -> None:
    """Measure `families` and add what comes of them to `outcome`. A process that raises, dies or is silent for
    `deadline_s` costs the family it was at; the rest get another process. None is left behind."""
    left = list(families)
    while left:
        with tempfile.TemporaryDirectory(prefix="cctrain-tolls-") as folder:
            events, log = Path(folder) / "events.jsonl", Path(folder) / "log"
            events.touch()
            process = launcher.launch(command(left, events), log, launcher.rank_environment(is_cpu=False))
            child = _Child(events, outcome, on_poll)
            try:
                why = child.wait(process, deadline_s)
            finally:
                _end(process)
            left = [name for name in left if name not in child.over]
            if why is None and not left:
                return
            stuck = [child.family] if child.family else left  # it has not come as far as a family
            outcome.failed |= dict.fromkeys(stuck, child.why or why or "its process ended without measuring it")
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
            outcome.log += "".join(f"{redacted(line)}\n" for line in lines[-_LOG_LINES:])
            left = [name for name in left if name not in stuck]


@dataclass(slots=True)
class _Child:
    events: Path
    outcome: Outcome
    on_poll: OnPoll
    family: str | None = None
    """The one being measured."""
    over: list[str] = field(default_factory=list)
    why: str | None = None
    """Why it failed, in its own words."""
    _offset: int = 0

    def wait(self, process: subprocess.Popen[bytes], deadline_s: float) -> str | None:
        """Until the process ends or says nothing for `deadline_s`. Returns None where it ended well, else why not."""
        last = time.monotonic()
        while True:
            code = process.poll()
            lines = self._read()
            for line in lines:
                self._hear(line)
            self.on_poll(self.family)
            if lines:
                last = time.monotonic()
            elif code is not None:
                return None if code == 0 else _explain(code)
            elif time.monotonic() - last > deadline_s:
                return f"it hangs: nothing came for {deadline_s:.0f} s"
            else:
                time.sleep(_POLL_S)

    def _read(self) -> list[Mapping[str, Any]]:
        with self.events.open("rb") as file:
            file.seek(self._offset)
            whole, newline, _ = file.read().rpartition(b"\n")
        self._offset += len(whole) + len(newline)
        return [line for text in whole.decode().splitlines() if (line := parse_line(text))]

    def _hear(self, line: Mapping[str, Any]) -> None:
        event, family = line["event"], str(line["family"])
        if event == "begin":
            self.family = family
        elif event == "failed":
            self.why = self.why or redacted(str(line["why"]))
        else:
            self.family = None
            self.over.append(family)
            self.outcome.readings += map(parse_reading, line.get("readings", ()))
            if event == "waived":
                self.outcome.waived[family] = str(line["why"])


def _explain(code: int) -> str:
    return f"its process was killed ({signal.strsignal(-code)})" if code < 0 else f"its process ended with {code}"


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)  # its ranks end with torchrun: they asked the kernel for it
    process.wait()
