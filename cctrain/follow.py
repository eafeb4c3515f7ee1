"""Following a run from outside: the samples as they come, and whether its ranks still live and move."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cctrain.processes import is_alive, is_here, kill_session
from cctrain.samples import parse_line

_POLL_S = 0.2
_GRACE_S = 4.0
"""How long the launcher gets to end the other ranks after one has failed, before they are killed."""
_EXIT_S = 60.0
"""How long ranks that have said they are done get to leave."""


@dataclass(slots=True)
class Rank:
    """What a rank has written so far."""

    start: dict[str, Any]
    last_step: dict[str, Any] | None = None
    end: dict[str, Any] | None = None


@dataclass(slots=True)
class Follower:
    """Reads the ranks' samples files as they grow and judges the run by them."""

    run_dir: Path
    setup_timeout_s: float
    step_timeout_s: float
    ranks: dict[int, Rank] = field(default_factory=dict)
    _offsets: dict[Path, int] = field(default_factory=dict)

    def follow(
        self,
        launcher_exit: Callable[[], int | None],
        on_step: Callable[[Mapping[int, Rank]], None],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> str | None:
        """Watch until the run ends. Returns None where every rank completed, else one sentence saying what happened.

        `launcher_exit` is the launcher's exit code, None while it runs. Ranks may still live when this returns.
        """
        moved, failed_at, all_ended_at = clock(), None, None
        while True:
            code = launcher_exit()
            if self._read():
                moved = clock()
                on_step(self.ranks)
            if self._is_complete():
                all_ended_at = all_ended_at or clock()
                if code is not None or clock() - all_ended_at > _EXIT_S:
                    return None
            elif self._failed_rank() is not None:
                failed_at = failed_at or clock()
                if code is not None or clock() - failed_at > _GRACE_S:
                    return self._why_failed(code)
            elif code is not None:
                return self._why_failed(code)
            limit, what = self._deadline()
            if clock() - moved > limit and all_ended_at is None:
                self._ask_where()
                return f"no {what} for {limit:g} s: a rank hangs ({self._stuck()}); where is in its log"
            sleep(_POLL_S)

    def end_ranks(self, launcher: subprocess.Popen[bytes] | None) -> None:
        """SIGKILL what still runs of the launcher and of the ranks on this machine. AutoModel swallows SIGTERM, so
        none is sent."""
        if launcher and launcher.poll() is None:
            os.killpg(launcher.pid, signal.SIGKILL)
            launcher.wait()
        self._read()
        for rank in self.ranks.values():
            kill_session(rank.start)

    def _read(self) -> bool:
        is_new = False
        for path in sorted((self.run_dir / "samples").glob("rank*.jsonl")):
            offset = self._offsets.get(path, 0)
            with path.open("rb") as file:
                file.seek(offset)
                block = file.read()
            whole, newline, _ = block.rpartition(b"\n")
            self._offsets[path] = offset + len(whole) + len(newline)
            for line in map(parse_line, whole.decode("utf-8", errors="replace").splitlines()):
                is_new |= line is not None and self._take(line, path)
        return is_new

    def _take(self, line: dict[str, Any], path: Path) -> bool:
        rank = int(path.stem.removeprefix("rank"))
        if line.get("event") == "start":
            self.ranks[rank] = Rank(line)
        elif line.get("event") in ("end", "error"):
            self.ranks[rank].end = line
        elif "step" in line:
            self.ranks[rank].last_step = line
        return True

    def _world(self) -> int:
        return next(iter(self.ranks.values())).start["world_size"] if self.ranks else 0

    def _is_complete(self) -> bool:
        ends = [rank.end for rank in self.ranks.values()]
        return bool(ends) and len(ends) == self._world() and all(end and end["event"] == "end" for end in ends)

    def _failed_rank(self) -> int | None:
        errors = {number: rank.end for number, rank in self.ranks.items() if rank.end and rank.end["event"] == "error"}
        if errors:
            return min(errors, key=lambda number: errors[number]["time"])
        open_ranks = {number: rank.start for number, rank in self.ranks.items() if not rank.end}
        return min((n for n, start in open_ranks.items() if is_here(start) and not is_alive(start)), default=None)

    def _why_failed(self, code: int | None) -> str:
        number = self._failed_rank()
        if number is None:
            return f"the launcher ended with exit code {code} before any rank started"
        end = self.ranks[number].end
        if end:
            return f"rank {number}: {end['message']}"
        return f"rank {number} was killed after {self._progress(number)}, from outside or for host memory"

    def _progress(self, number: int) -> str:
        step = self.ranks[number].last_step
        return f"step {step['step']}" if step else "no step"

    def _ask_where(self) -> None:
        """Have every rank write its stacks into its log (`faulthandler` in worker.py)."""
        for rank in self.ranks.values():
            if is_here(rank.start) and is_alive(rank.start):
                os.kill(rank.start["pid"], signal.SIGUSR1)
        time.sleep(1.0)

    def _deadline(self) -> tuple[float, str]:
        if self.ranks and all(rank.last_step for rank in self.ranks.values()):
            return self.step_timeout_s, "step (measure.step_timeout_s)"
        return self.setup_timeout_s, "first step (measure.setup_timeout_s)"

    def _stuck(self) -> str:
        return ", ".join(f"rank {number} after {self._progress(number)}" for number in self.ranks) or "no rank started"
