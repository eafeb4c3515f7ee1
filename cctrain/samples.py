"""The file a rank appends its samples to, the thread that fills it, and who reads it meanwhile."""

from __future__ import annotations

import contextlib
import io
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson

from cctrain.records import strict_json

_FLUSH_S = 0.5
"""A step is on disk at most this long after the device finished it, so that a crash loses no more."""
_BLOCK_BYTES = 64 << 10
STEP = b'{"step":'
"""What the line of a step begins with."""
_NUMBER_BEGINS = len(STEP)
STOP_FILE = "stop.json"
"""In the run directory: the parent has measured enough, and why."""


def step_of(line: bytes) -> int | None:
    """The number of the step that a line is of, which need not be parsed for that; None for other lines."""
    if not line.startswith(STEP):
        return None
    number = line[_NUMBER_BEGINS : line.find(b",", _NUMBER_BEGINS)]
    return int(number) if number.isdigit() else None


def parse_line(line: str | bytes) -> dict[str, Any] | None:
    """One line of a samples file, or None where it is cut short."""
    try:
        parsed = orjson.loads(line)  # a run of a thousand ranks leaves a million lines; json takes three times as long
    except ValueError:
        return None
    return parsed if isinstance(parsed, dict) else None


class SampleFile:
    """Append-only lines; each goes out in one write, so that a reader sees whole lines."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._writing = threading.Lock()

    def write(self, line: dict[str, Any]) -> None:
        """Append one line. Raises OSError where the disk is full."""
        text = strict_json(line).encode()
        with self._writing:
            written = os.write(self._descriptor, text)
        if written < len(text):
            raise OSError(28, "No space left on device")

    def close(self) -> None:
        """Nothing is written after this."""
        os.close(self._descriptor)


class SamplesTail:
    """What the ranks of a run append to their samples files, as they grow."""

    def __init__(self, run_dir: Path) -> None:
        self._folder = run_dir / "samples"
        self._offsets: dict[Path, int] = {}

    def read(self) -> Iterator[tuple[int, list[bytes]]]:
        """Each rank that has written whole lines since the last call, and these: of many, the first. Until nothing
        comes, there may be more."""
        for number, path in _files(self._folder):
            whole = _whole_lines(path, self._offsets.get(path, 0))
            if whole:
                self._offsets[path] = self._offsets.get(path, 0) + len(whole)
                yield number, list(io.BytesIO(whole))


def lines_of_ranks(run_dir: Path) -> dict[int, Iterator[bytes]]:
    """What each rank of a run has written, line by line, read as it is asked for."""
    return {number: _lines(path) for number, path in _files(run_dir / "samples")}


def _files(folder: Path) -> Iterator[tuple[int, Path]]:
    for path in sorted(folder.glob("rank*.jsonl")):
        yield int(path.stem.removeprefix("rank")), path


def _lines(path: Path) -> Iterator[bytes]:
    offset = 0
    while whole := _whole_lines(path, offset):
        offset += len(whole)
        yield from io.BytesIO(whole)


def _whole_lines(path: Path, offset: int) -> bytes:
    """From `offset` on, those that end within a block, or the first."""
    with path.open("rb") as file:  # not kept open: a thousand ranks are more files than a process may have
        file.seek(offset)
        block = file.read(_BLOCK_BYTES)
        while b"\n" not in block and (more := file.read(_BLOCK_BYTES)):
            block += more
    return block[: block.rfind(b"\n") + 1]


class SampleThread:
    """Every half second, beside the training thread: writes the steps that `finished` yields, and calls `on_tick`."""

    def __init__(
        self, finished: Callable[[], list[dict[str, Any]]], file: SampleFile, on_tick: Callable[[], None]
    ) -> None:
        self._finished, self._file, self._on_tick = finished, file, on_tick
        self._stopping = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="cctrain-samples", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise in the training thread what the writing thread ran into."""
        if self._error:
            raise RuntimeError(f"samples cannot be written: {self._error}") from self._error

    def close(self) -> None:
        """Write what is left and stop. What goes wrong here waits for `check`, so as not to hide why training ended."""
        self._stopping.set()
        self._thread.join()
        self._write()

    def _run(self) -> None:
        while not self._stopping.wait(_FLUSH_S) and not self._error:
            self._write()
            with contextlib.suppress(OSError):  # of a network file system; the next tick asks again
                self._on_tick()

    def _write(self) -> None:
        try:
            for line in self._finished():
                self._file.write(line)
        except Exception as error:  # noqa: BLE001 - a full disk or a lost device; the training thread raises it
            self._error = self._error or error
