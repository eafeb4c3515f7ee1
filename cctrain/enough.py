"""`measure.steps=auto`: the parent tells the ranks to stop once the interval is narrow enough."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cctrain.config import MeasureConfig
from cctrain.follow import Rank
from cctrain.rundir import write_json
from cctrain.samples import STOP_FILE
from cctrain.stopping import stop_reason


def stop_when_enough(run_dir: Path, measure: MeasureConfig, ranks: Mapping[int, Rank]) -> None:
    """Write the file that ends the run, with the reason, once the steps that all ranks have finished suffice."""
    path = run_dir / STOP_FILE
    if path.exists() or not ranks or len(ranks) < next(iter(ranks.values())).start["world_size"]:
        return
    step_times_s = [max(times) for times in zip(*(rank.step_times_s for rank in ranks.values()), strict=False)]
    measured = step_times_s[measure.warmup :]
    reason = stop_reason(measured, measure.half_width, measure.max_steps)
    if reason:
        write_json(path, {"why": f"measure.steps=auto: enough after {len(measured)} measured steps: {reason}"})
