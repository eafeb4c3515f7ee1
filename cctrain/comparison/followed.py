"""What was lost in runs that followed a prediction: with CC on, or emulated under the tolls that were predicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cctrain import ratios
from cctrain.comparison import comparable
from cctrain.comparison.arms import arms_of
from cctrain.comparison.comparable import RefusedError
from cctrain.comparison.compare import compare
from cctrain.comparison.groups import Options
from cctrain.errors import RequestError
from cctrain.load import Run, read_runs


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the runs came to."""

    mode: str
    """on or emulated."""
    num_runs: int
    keep_ratio: float
    ci95: tuple[float, float] | None
    """Over the runs; of a single emulated one over its pairs of blocks, of a single one with CC on from its noise."""


def outcome_of(
    followers: Sequence[Path],
    base: Path,
    profile_sha256: str,
    *,
    allow: Sequence[str] = (),
    base_step_time_s: float | None = None,
) -> Outcome:
    """Of the runs at `followers`: emulated ones over their own plain steps, others over the run at `base` (the plain
    steps of an emulated one), or over a step of `base_step_time_s`, by their medians.

    Raises RequestError for runs of both modes, or of none of them, under other tolls, and for what is not comparable
    with the run at `base`.
    """
    (start,) = read_runs([base])
    runs = [run for run in read_runs(followers) if run.run_id != start.run_id]
    if not runs:
        raise RequestError("--followed-by: that is the run itself; give runs that came after it")
    modes = sorted({run.mode for run in runs})
    if modes not in (["on"], ["emulated"]):
        raise RequestError(
            f"--followed-by: modes {' and '.join(modes)}; allowed are runs with CC on, or such as were emulated under "
            "the tolls that are predicted"
        )
    for run in runs:
        if modes == ["emulated"] and (run.tolls or {}).get("sha256") != profile_sha256:
            raise RequestError(f"--followed-by: {run.run_id} was emulated under {run.profile}; --tolls has other tolls")
    if modes == ["emulated"] and base_step_time_s is not None:
        raise RequestError(
            "--base-step-time-s: emulated runs are held against their own plain steps; leave it out, or --followed-by"
        )
    comparable.check_names(allow, [start, *runs])
    try:
        comparable.judge(comparable.alike([start, *runs], has_by=False), allow)
        if modes == ["on"] and (base_step_time_s is not None or start.mode == "emulated"):
            step_time_s = base_step_time_s or arms_of(start)[0].step_time_s
            return Outcome("on", len(runs), *_over_step(step_time_s, runs, allow))
        given = runs if modes == ["emulated"] else [start, *runs]
        found = compare(given, Options(allow=tuple(allow))).comparisons
    except RefusedError as error:
        raise RequestError(f"--followed-by: {'; '.join(error.why)}. They are taken with {error.way_out}") from error
    if len(found) > 1:
        raise RequestError(f"--followed-by: {' and '.join(one.other for one in found)}: give runs of one of them")
    (one,) = found
    return Outcome(modes[0], len(runs), one.keep_ratio, one.ci95 or one.within_run_ci95)


def _over_step(
    base_step_time_s: float, runs: Sequence[Run], allow: Sequence[str]
) -> tuple[float, tuple[float, float] | None]:
    arms = [arm for run in runs for arm in arms_of(run)]
    comparable.judge(comparable.whole_and_steady(arms), allow)
    return ratios.geometric_mean([base_step_time_s / arm.step_time_s for arm in arms])
