"""The trial under way, on stderr: where its log is and, on a terminal, the progress bar that it would have alone."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from rich.console import Console

from cctrain.follow import Follower
from cctrain.report.progress import Progress


class TrialProgress:
    """One trial after the other, each a process of its own, by what its ranks write."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._follower: Follower | None = None
        self._bar: Progress | None = None

    def show(self, run_dir: Path) -> None:
        """How far the trial is whose run directory that is."""
        with contextlib.suppress(OSError):  # the directory has just been made, or the trial just ended
            if self._follower is None:
                self._begin(run_dir)
            if self._follower and self._bar and self._follower.read():
                self._bar.update(self._follower.ranks)

    def _begin(self, run_dir: Path) -> None:
        expected = json.loads((run_dir / "running.json").read_text(encoding="utf-8"))
        self._follower = Follower(run_dir, 0.0, 0.0)
        self._console.print(f"    log: {run_dir / 'logs' / 'rank0.log'}", soft_wrap=True)
        if self._console.is_terminal:
            self._bar = Progress(expected["warmup"] + expected["steps"], expected["ranks"], self._console)
            self._bar.__enter__()

    def end(self) -> None:
        """The trial is over."""
        if self._bar:
            self._bar.__exit__()
        self._follower = self._bar = None
