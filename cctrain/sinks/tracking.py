"""The sinks of a run, seen from its parent: started beside the ranks, told of its end, never waited for but then.

The parent does nothing a step but look whether a sink has said something.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cctrain.errors import RequestError
from cctrain.processes import STOPS
from cctrain.redaction import redact_file
from cctrain.sinks.sink import LOG

CLOSE_S = 60.0
"""How long the sinks together may take after the run is over; what has not been sent by then stays on this disk."""
_SILENT_S = 3.0
_POLL_S = 0.05


def check_sinks(names: Sequence[str], find: Callable[[str], Any] = importlib.util.find_spec) -> None:
    """Raises RequestError for a sink that does not exist, or whose package is not installed."""
    for name in names:
        module = _module(name)
        if find(module.PACKAGE) is None:
            raise RequestError(
                f"track={name}: the package {module.PACKAGE} is not installed; {module.INSTALL}, or track=none"
            )


def _module(name: str) -> Any:
    module = None
    with contextlib.suppress(ModuleNotFoundError):
        module = importlib.import_module(f"cctrain.sinks.{name}") if name.isidentifier() else None
    if not hasattr(module, "open_sink"):
        raise RequestError(f"track.sinks: {name} is none; allowed is what conf/track holds, as track=wandb")
    return module


@dataclass(slots=True)
class _Running:
    name: str
    log: Path
    process: subprocess.Popen[bytes]
    unread: bytes = b""
    has_warned: bool = False


def sink_command(name: str, run_dir: Path) -> list[str]:
    """The argv of one sink's process. The request, which may name paths and people, is not in it."""
    return [sys.executable, "-m", "cctrain.sinks.child", name, str(run_dir)]


class Tracking:
    """One process a sink. Nothing here raises: a sink that fails costs a warning, through `tell`."""

    def __init__(self, run_dir: Path, tell: Callable[[str], None], *, close_s: float = CLOSE_S) -> None:
        self._run_dir, self._tell, self._close_s = run_dir, tell, close_s
        self._running: list[_Running] = []

    def start(
        self,
        names: Sequence[str],
        command: Callable[[str, Path], list[str]] = sink_command,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        """Start them; the run directory is written."""
        for name in names:
            if not _module(name).is_wanted(environment):
                continue
            try:
                process = subprocess.Popen(
                    command(name, self._run_dir),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    env=environment,
                    start_new_session=True,  # a Ctrl-C reaches us, and what was measured is still sent
                )
            except OSError as error:
                self._warn(name, f"it cannot be started: {error}")
                continue
            assert process.stdout
            os.set_blocking(process.stdout.fileno(), False)
            self._running.append(_Running(name, self._run_dir / LOG.format(name=name), process))

    def relay(self) -> None:
        """Pass on what the sinks have said since the last call."""
        for sink in self._running:
            for kind, text in _lines(sink):
                if kind != "warning":
                    self._tell(f"{sink.name}: {text}")
                elif not sink.has_warned:
                    sink.has_warned = True
                    self._warn(sink.name, text)

    def close(self) -> None:
        """The run is over and its record written: let the sinks take it, for `close_s` at most, or until a Ctrl-C."""
        for sink in self._running:
            assert sink.process.stdin
            with contextlib.suppress(OSError):
                sink.process.stdin.close()
        why = f"it had not taken everything {self._close_s:g} s after the end of the run"
        try:
            with _heeding_stops():
                self._wait()
        except KeyboardInterrupt:
            why = "it was not waited for, because of Ctrl-C, SIGTERM or SIGHUP"
        self.relay()
        for sink in self._running:
            if sink.process.poll() is None:
                os.killpg(sink.process.pid, signal.SIGKILL)
                sink.process.wait()
                self._give_up(sink, why)
            elif sink.process.returncode:
                self._give_up(sink, f"its process ended with exit code {sink.process.returncode}")
            with contextlib.suppress(OSError):
                redact_file(sink.log)
        self._running = []

    def _wait(self) -> None:
        begin, has_said = time.monotonic(), False
        while any(sink.process.poll() is None for sink in self._running):
            waited = time.monotonic() - begin
            if waited > self._close_s:
                return
            self.relay()
            if waited > _SILENT_S and not has_said:
                has_said = True
                names = " and ".join(sink.name for sink in self._running if sink.process.poll() is None)
                self._tell(f"waiting for {names}, at most {self._close_s:g} s; Ctrl-C ends the wait")
            time.sleep(_POLL_S)

    def _give_up(self, sink: _Running, why: str) -> None:
        if not sink.has_warned:
            self._warn(sink.name, f"{why}; its log is {sink.log}")

    def _warn(self, name: str, text: str) -> None:
        self._tell(f"warning: {name}: {text} (the run and its record are not affected)")


def _lines(sink: _Running) -> Iterator[tuple[str, str]]:
    assert sink.process.stdout
    with contextlib.suppress(OSError):  # nothing there yet
        while block := os.read(sink.process.stdout.fileno(), 1 << 16):
            sink.unread += block
    *lines, sink.unread = sink.unread.split(b"\n")
    for line in lines:
        with contextlib.suppress(ValueError, AttributeError):
            yield from ((str(kind), str(text)) for kind, text in json.loads(line).items())


@contextlib.contextmanager
def _heeding_stops() -> Iterator[None]:
    """While the run ended, further Ctrl-Cs were ignored; this wait may be cut short."""
    before = [signal.signal(stop, signal.default_int_handler) for stop in STOPS]
    try:
        yield
    finally:
        for stop, handler in zip(STOPS, before, strict=True):
            signal.signal(stop, handler)
