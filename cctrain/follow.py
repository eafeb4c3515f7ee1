"""Following a run from outside: the samples as they come, and whether its ranks still live and move."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cctrain.launcher import first_to_fail
from cctrain.processes import host_name, is_alive, is_here, kill_session
from cctrain.samples import STEP, SamplesTail, parse_line

if TYPE_CHECKING:
    from cctrain.reduce import Reduction  # and with it NumPy, which the launch does not wait for

_POLL_S = 0.2
_GRACE_S = 4.0
"""How long the launcher gets to end the other ranks after one has failed, before they are killed."""
_FULL_BYTES = 1 << 20
_PEER_IS_GONE = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")
"""What a rank's own error says when another one went first."""
_DIE_S = 10.0
"""How long a killed rank gets to be gone; one that the GPU's driver holds back takes its time."""
_EXIT_S = 60.0
"""How long ranks that have said they are done get to leave."""


@dataclass(slots=True)
class Rank:
    """What a rank has written so far."""

    start: dict[str, Any]
    data_rank: int = 0
    last_step: dict[str, Any] | None = None
    end: dict[str, Any] | None = None


@dataclass(slots=True)
class Follower:
    """Reads the ranks' samples files as they grow and judges the run by them."""

    run_dir: Path
    setup_timeout_s: float
    step_timeout_s: float
    reduction: Reduction | None = None
    """Takes in what is read; None again where it could not, or was interrupted, and misses something."""
    ranks: dict[int, Rank] = field(default_factory=dict)
    _tail: SamplesTail = field(init=False)

    def __post_init__(self) -> None:
        self._tail = SamplesTail(self.run_dir)

    def follow(
        self,
        launcher_exit: Callable[[], int | None],
        on_step: Callable[[Mapping[int, Rank]], None],
        *,
        is_ours: bool = True,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> str | None:
        """Watch until the run ends. Returns None where every rank completed, else one sentence saying what happened.

        `launcher_exit` gives the launcher's exit code, None while it runs; `is_ours` is false where somebody else
        launched the ranks, who will not wait for their end. Ranks may still live when this returns.
        """
        moved, failed_at, all_ended_at = clock(), None, None
        while True:
            code = launcher_exit()
            if self.read():
                moved = clock()
                on_step(self.ranks)
            if self._is_complete():
                all_ended_at = all_ended_at or clock()
                if code is not None or not is_ours or clock() - all_ended_at > _EXIT_S:
                    return None
            elif self._failed_rank() is not None:
                failed_at = failed_at or clock()
                if code is not None or clock() - failed_at > _GRACE_S:
                    return self._why_failed(code)
            elif code is not None:
                return self._why_failed(code)
            limit, what = self._deadline()
            if clock() - moved > limit and all_ended_at is None:
                self._ask_where(sleep)
                return f"{self._stuck('hangs after')}: no {what} for {limit:g} s; where it is stands in its log"
            sleep(_POLL_S)

    def end_ranks(self, launcher: subprocess.Popen[bytes] | None) -> None:
        """SIGKILL what still runs of the launcher and of the ranks on this machine, and wait until they are gone.
        AutoModel swallows SIGTERM, so none is sent."""
        if launcher and launcher.poll() is None:
            os.killpg(launcher.pid, signal.SIGKILL)
            launcher.wait()
        self.read()
        # In a job of somebody else's, one that has ended leaves by itself.
        killed = [rank.start for rank in self.ranks.values() if is_here(rank.start) and (launcher or not rank.end)]
        for start in killed:
            kill_session(start)
        until = time.monotonic() + _DIE_S
        while any(map(is_alive, killed)) and time.monotonic() < until:
            time.sleep(0.05)
        self.read()  # what they wrote last

    def read(self) -> bool:
        """Take in what the ranks have written meanwhile. Returns whether that is anything."""
        is_new = False
        reduction, self.reduction = self.reduction, None  # until it has all that is read
        while read := list(self._tail.read()):
            for number, lines in read:
                for line in filter(None, map(parse_line, _telling(lines))):
                    self._take(number, line)
                    is_new = True
            reduction = _with(reduction, read)
        self.reduction = reduction
        return is_new

    def _take(self, rank: int, line: dict[str, Any]) -> None:
        if line.get("event") == "start":
            self.ranks[rank] = Rank(line)
        elif rank not in self.ranks:  # its first line is damaged
            return
        elif line.get("event") == "ready":
            self.ranks[rank].data_rank = line["data_rank"]
        elif line.get("event") in ("end", "error"):
            self.ranks[rank].end = line
        elif "step" in line:
            self.ranks[rank].last_step = line

    def _world(self) -> int:
        return next(iter(self.ranks.values())).start["world_size"] if self.ranks else 0

    def _is_complete(self) -> bool:
        ends = [rank.end for rank in self.ranks.values()]
        return bool(ends) and len(ends) == self._world() and all(end and end["event"] == "end" for end in ends)

    def _failed_rank(self) -> int | None:
        errors = {number: rank.end for number, rank in self.ranks.items() if rank.end and rank.end["event"] == "error"}
        echoes = {number: any(words in errors[number]["message"] for words in _PEER_IS_GONE) for number in errors}
        first = min(errors, key=lambda number: (echoes[number], errors[number]["time"]), default=None)
        if first is not None and not echoes[first]:
            return first
        open_ranks = {number: rank.start for number, rank in self.ranks.items() if not rank.end}
        dead = [number for number, start in open_ranks.items() if is_here(start) and not is_alive(start)]
        if first is not None and not dead:  # a peer went first that has said nothing: one on a machine that is gone
            dead = [number for number, start in open_ranks.items() if not is_here(start)]
        if len(dead) < 2:
            return min(dead, default=first)
        named = first_to_fail(self.run_dir / "logs" / "torchrun.log")
        return named if named in dead else min(dead)

    def _why_failed(self, code: int | None) -> str:
        number = self._failed_rank()
        if number is None:
            when = f"with {self._stuck('at')}" if self.ranks else "before any rank started"
            return f"the launcher ended with exit code {code} {when}"
        end = self.ranks[number].end
        if end:
            return f"rank {number}: {end['message']}"
        if shutil.disk_usage(self.run_dir).free < _FULL_BYTES:
            return f"rank {number} ended after {self._progress(number)}: no space left on the disk of {self.run_dir}"
        if not is_here(self.ranks[number].start):
            return f"{self._where(number)} fell silent after {self._progress(number)}: its machine or network is gone"
        return f"rank {number} was killed after {self._progress(number)}, from outside or for host memory"

    def dead_here(self) -> dict[int, str]:
        """The ranks of this machine that ended without a word, with how far they had come."""
        self.read()
        gone = [number for number, rank in self.ranks.items() if is_here(rank.start) and not is_alive(rank.start)]
        self.read()  # what they said last
        return {number: self._progress(number) for number in gone if not self.ranks[number].end}

    def _where(self, number: int) -> str:
        return f"rank {number} on {host_name(self.ranks[number].start)}"

    def _progress(self, number: int) -> str:
        step = self.ranks[number].last_step
        return f"step {step['step']}" if step else "no step"

    def _ask_where(self, sleep: Callable[[float], None]) -> None:
        """Have every rank write its stacks into its log (`faulthandler` in worker.py)."""
        for rank in self.ranks.values():
            if is_here(rank.start) and is_alive(rank.start):
                with contextlib.suppress(ProcessLookupError):  # it ended just now
                    os.kill(rank.start["pid"], signal.SIGUSR1)
        sleep(1.0)

    def _deadline(self) -> tuple[float, str]:
        if self.ranks and all(rank.last_step for rank in self.ranks.values()):
            return self.step_timeout_s, "step (measure.step_timeout_s)"
        return self.setup_timeout_s, "first step (measure.setup_timeout_s)"

    def _stuck(self, word: str) -> str:
        """The ranks that have not ended, with how far they have come, the one furthest behind first."""
        open_ranks = [number for number, rank in self.ranks.items() if not rank.end]
        behind = sorted(open_ranks, key=lambda number: (self.ranks[number].last_step or {"step": 0})["step"])
        return ", ".join(f"rank {number} {word} {self._progress(number)}" for number in behind) or "no rank started"


def _telling(lines: Sequence[bytes]) -> Iterable[bytes]:
    """The lines of a rank that tell how it stands: all but steps, and the last of these."""
    last = next((line for line in reversed(lines) if line.startswith(STEP)), None)
    return (line for line in (*(line for line in lines if not line.startswith(STEP)), last) if line)


def _with(reduction: Reduction | None, read: Iterable[tuple[int, Sequence[bytes]]]) -> Reduction | None:
    """The reduction with what was read; None where it cannot take it in. The run goes on all the same, and its end
    reads the files again and says what is wrong with them."""
    if reduction is None:
        return None
    try:
        for number, lines in read:
            reduction.take(number, lines)
        reduction.advance()
    except Exception:  # noqa: BLE001 - whatever a damaged sample leads to
        return None
    return reduction
