"""The progress of a run, on stderr: a bar, or where stderr is no terminal a line now and then."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from cctrain.follow import Rank

_EVERY_S = 30.0
"""From one line to the next, and to the first."""


class Progress:
    """Step, tokens/s/GPU, loss, time left. Rates are of the last step and the ranks' own, for the eye only."""

    def __init__(
        self,
        num_steps: int,
        world: int,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
        *,
        is_emulated: bool = False,
    ) -> None:
        self._console = console = console or Console(stderr=True)
        self._num_steps, self._world = num_steps, world
        self._kind = "emulated, plain or tolled  " * is_emulated
        self._clock, self._said_at = clock, clock()
        rate = TextColumn("{task.fields[rate]}")
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            rate,
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._bar = Bar(*columns, console=console, disable=not console.is_terminal)
        self._task: TaskID = self._bar.add_task("starting ranks", total=num_steps, rate="")

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def update(self, ranks: Mapping[int, Rank]) -> None:
        """Show what the ranks have written so far."""
        steps = [rank.last_step for rank in ranks.values() if rank.last_step]
        if len(steps) < self._world:
            self._bar.update(self._task, description=f"loading, {len(ranks)} of {self._world} ranks up")
            return
        behind = min(steps, key=lambda step: int(step["step"]))
        seconds = max(float(step["step_time_s"]) for step in steps)
        by_sample = {rank.data_rank: rank.last_step["padded_tokens"] for rank in ranks.values() if rank.last_step}
        tokens = sum(by_sample.values()) / self._world
        loss = "not a number" if behind["loss"] is None else f"{behind['loss']:.3f}"
        speed = f"{tokens / seconds:,.0f}" if seconds > 0 else "?"
        rate = f"{speed} tokens/s/GPU  {self._kind}loss {loss}"
        self._bar.update(self._task, description="step", completed=int(behind["step"]), rate=rate)
        if not self._console.is_terminal and self._clock() - self._said_at >= _EVERY_S:
            self._said_at = self._clock()
            self._console.print(f"step {behind['step']} of {self._num_steps}  {rate}", soft_wrap=True)
