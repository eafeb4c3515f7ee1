"""`measure.steps=auto`: the parent tells the ranks to stop once the interval is narrow enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cctrain.config import MeasureConfig
from cctrain.records import StepRecord
from cctrain.rundir import write_json
from cctrain.samples import STOP_FILE
from cctrain.stopping import next_look, stop_reason


@dataclass(slots=True)
class Enough:
    """Judges a run as its steps come in, at the looks of stopping.py only: it is asked several times a second."""

    run_dir: Path
    measure: MeasureConfig
    _next_look: int = field(default=0, init=False)

    def judge(self, steps: Sequence[StepRecord]) -> None:
        """Write the file that ends the run, with the reason, once the `steps` that all ranks have finished suffice."""
        num_steps = len(steps) - self.measure.warmup
        if num_steps < self._next_look:
            return
        path = self.run_dir / STOP_FILE
        if path.exists():
            return
        self._next_look = next_look(num_steps, self.measure.max_steps)
        measured = [step.step_time_s for step in steps[self.measure.warmup :]]
        reason = stop_reason(measured, self.measure.half_width, self.measure.max_steps)
        if reason:
            write_json(path, {"why": f"measure.steps=auto: enough after {num_steps} measured steps: {reason}"})
