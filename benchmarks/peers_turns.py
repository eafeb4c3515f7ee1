"""Runs of `peers.py` that are made ready side by side and measured one at a time.

Until its steps are alike a run imports, fills weights, compiles and tunes kernels, a minute to eight, which no figure
is of. Several do that at once and are held by SIGSTOP within their warm-up: from then on none of their threads runs,
and what they had queued on the GPU is done within moments. When all are held they go on one by one, each to its end.
The memory of the GPU has to hold all of them.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import psutil

from cctrain.samples import parse_line, step_of

READY_STEPS = 3
"""After so many a run is held: compilers have seen a second step, and graphs are recorded."""
_POLL_S = 0.05
_LOOK_S = 2.0
_DRAIN_S = 2.0
"""For what the last one held has queued."""


class Turn:
    """Of one run: the process that it is by now, held or not."""

    def __init__(self, runs: Path) -> None:
        self.process: subprocess.Popen[str] | None = None
        self.held_at: float | None = None
        self.went_on_at: float | None = None
        """Unix times."""
        self.is_over = False
        """Nothing more is to be started."""
        self._runs = runs
        self._old = set(self._samples())
        """Of earlier calls: a rank there may have had a pid that one has now."""

    @property
    def waited_s(self) -> float:
        """How long it was held, so far."""
        return (self.went_on_at or time.time()) - self.held_at if self.held_at else 0.0

    @property
    def is_waiting(self) -> bool:
        """Whether it is held, and not its turn yet."""
        return self.held_at is not None and self.went_on_at is None

    def _samples(self) -> list[Path]:
        return list(self._runs.glob("*/samples/rank0.jsonl"))

    def hold(self) -> bool:
        """Hold it if it is ready. Returns whether it is held: by this, or by itself (`others/run.py --hold`)."""
        for process in tree(self.process):
            if self._num_steps(process.pid) >= READY_STEPS:
                process.suspend()
        if _stopped(self.process):
            self.held_at = time.time()
        return self.held_at is not None

    def go_on(self) -> None:
        """Let go of it, or of what it has become since: where a program fails, another may follow that holds itself."""
        self.went_on_at = self.went_on_at or time.time()
        for process in _stopped(self.process):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()

    def end(self) -> None:
        """Tell it to stop, as a run does that ends as a partial record."""
        self.is_over = True
        self.go_on()
        if self.process:
            self.process.terminate()

    def _num_steps(self, pid: int) -> int:
        """How many the rank with that pid has on disk; 0 where it is none, or no run of this folder."""
        for path in set(self._samples()) - self._old:
            lines = path.read_bytes().splitlines()
            if lines and (parse_line(lines[0]) or {}).get("pid") == pid:
                return sum(step_of(line) is not None for line in lines)
        return 0


def tree(process: subprocess.Popen[str] | None) -> list[psutil.Process]:
    """The process with what it has started, and those have; empty where there is none any more."""
    with contextlib.suppress(psutil.NoSuchProcess):
        if process:
            top = psutil.Process(process.pid)
            return [top, *top.children(recursive=True)]
    return []


def _stopped(process: subprocess.Popen[str] | None) -> list[psutil.Process]:
    found = []
    for one in tree(process):
        with contextlib.suppress(psutil.NoSuchProcess):
            if one.status() == psutil.STATUS_STOPPED:
                found.append(one)
    return found


def side_by_side(runs: Sequence[Callable[[Turn], Any]], folder: Path) -> list[Any]:
    """What `runs` return, each called with its turn in a thread of its own; `folder` has the runs of cctrain."""
    turns = [Turn(folder) for _ in runs]
    with ThreadPoolExecutor(len(runs)) as pool:
        done = [pool.submit(run, turn) for run, turn in zip(runs, turns, strict=True)]
        try:
            waiting = list(zip(turns, done, strict=True))
            while waiting := [pair for pair in waiting if not _is_held_or_over(*pair)]:
                time.sleep(_POLL_S)
            time.sleep(_DRAIN_S)
            for turn, future in zip(turns, done, strict=True):
                while not future.done():
                    turn.go_on()
                    wait([future], _LOOK_S)
        except BaseException:
            while not all(future.done() for future in done):  # one may have been about to start, or to hold itself
                for turn in turns:
                    turn.end()
                wait(done, _LOOK_S)
            raise
    return [future.result() for future in done]


def _is_held_or_over(turn: Turn, future: Future[Any]) -> bool:
    if future.done():
        return True
    with contextlib.suppress(psutil.NoSuchProcess):  # one of its processes ended while it was looked at
        return turn.hold()
    return False


def held_too_late(record: Path, turn: Turn | None, warmup: int) -> str | None:
    """What is wrong where a run was held when its warm-up was over: one of the measured steps is as long as it
    waited."""
    if turn is None or turn.held_at is None or turn.went_on_at is None:
        return None
    steps = json.loads(record.read_text(encoding="utf-8"))["steps"]
    # By when it went on: the GPU had done by then what the host had queued when it was held.
    begun = [step["step"] for step in steps if step["rank_begin_s"][0] <= turn.went_on_at]
    if begun and begun[-1] > warmup:
        return f"it was held in step {begun[-1]}, after its warm-up of {warmup}; give it a longer --warmup"
    return None
