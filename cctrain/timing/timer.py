"""Marks of a training loop to the times of its steps.

A step runs from the end of the step before it, so that waiting for data is inside it; `resume` starts anew after
anything that is not training (set-up, validation, a checkpoint), whose time then belongs to no step. Marks are only
handles; `finished` turns those that the device has passed into numbers, off the hot path.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from cctrain.timing.clock import StepClock


@dataclass(slots=True)
class _Step:
    begin: int
    marks: list[tuple[str, int]] = field(default_factory=list)
    data_wait_s: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)


class StepTimer:
    """Spans between step ends, with the phases of each. One thread marks, another may read."""

    def __init__(self, clock: StepClock) -> None:
        self._clock = clock
        self._step: _Step | None = None
        self._ended: deque[_Step] = deque()
        self._known: dict[int, float] = {}
        self._reading = threading.Lock()
        self._recorded: list[str] | None = None

    def resume(self) -> None:
        """The next step begins here."""
        self._step = _Step(self._clock.mark())

    def pause(self) -> None:
        """What follows belongs to no step, until `resume`."""
        self._step = None

    def phase_end(self, name: str) -> None:
        """What ran since the last mark was `name`; a name comes again with each micro-batch. Ignored outside a step."""
        if self._recorded is not None:
            self._recorded.append(name)
            self._clock.stamp()
            return
        if self._step is not None:
            self._step.marks.append((name, self._clock.mark()))

    def record_marks(self) -> list[str]:
        """Until `end_record`, marks go into the CUDA graph being captured, and their names into the list returned."""
        self._recorded = []
        return self._recorded

    def end_record(self) -> None:
        """Marks count again."""
        self._recorded = None

    def replayed(self, names: Sequence[str]) -> None:
        """A graph with the marks `names` in it was queued on the current stream."""
        handles = self._clock.replayed(len(names))
        if self._step is not None:
            self._step.marks += zip(names, handles, strict=True)

    def step_end(self, last_phase: str, *, data_wait_s: float = 0.0, **facts: Any) -> None:
        """The step ends here and the next begins; `facts` are kept beside its times. RuntimeError outside one.

        `data_wait_s` is how long the host waited for the step's data, at its beginning.
        """
        if self._step is None:
            raise RuntimeError("StepTimer.step_end() before resume(): no step has begun")
        end = self._clock.mark()
        self._step.marks.append((last_phase, end))
        self._step.data_wait_s, self._step.facts = data_wait_s, facts
        self._ended.append(self._step)
        self._step = _Step(end)

    def finished(self) -> list[dict[str, Any]]:
        """Steps ended since the last call whose stamps the device has passed, oldest first.

        A row holds the step's facts and, in seconds: `begin_s` (Unix time), `step_time_s`, `data_wait_s`, `phases_s`,
        and `micro_batches_s` with the parts of the phases that came several times.
        """
        with self._reading:
            ended = [(step, _handles(step)) for step in list(self._ended)]
            wanted = list(dict.fromkeys(one for _, handles in ended for one in handles if one not in self._known))
            read = zip(wanted, self._clock.read(wanted), strict=True)
            self._known |= {handle: seconds for handle, seconds in read if seconds is not None}
            rows = []
            for step, handles in ended:
                if any(handle not in self._known for handle in handles):
                    break
                rows.append(self._times(step, handles))
                self._ended.popleft()
            return rows

    def _times(self, step: _Step, handles: list[int]) -> dict[str, Any]:
        times = [self._known[handle] for handle in handles]
        spans: dict[str, list[float]] = {}
        for (name, _), before, after in zip(step.marks, times, times[1:], strict=False):
            spans.setdefault(name, []).append(after - before)
        for handle in handles[:-1]:
            self._known.pop(handle)
        return {
            **step.facts,
            "begin_s": times[0] + self._clock.unix_offset_s,
            "step_time_s": times[-1] - times[0],
            "data_wait_s": step.data_wait_s,
            "phases_s": _phases(spans, step),
            "micro_batches_s": {name: parts for name, parts in spans.items() if len(parts) > 1},
        }


def _handles(step: _Step) -> list[int]:
    return [step.begin, *(handle for _, handle in step.marks)]


def _phases(spans: dict[str, list[float]], step: _Step) -> dict[str, float]:
    """The phases' sums; the first phase gives up what of it was spent waiting for data.

    The device stands still meanwhile, unless the host runs ahead: then the wait is hidden in part, and what the first
    phase lasted is the most that it can have cost.
    """
    phases = {name: sum(parts) for name, parts in spans.items()}
    first = step.marks[0][0]
    waited = max(0.0, min(step.data_wait_s, spans[first][0]))
    return {"data_wait": waited, **phases, first: phases[first] - waited}
