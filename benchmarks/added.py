"""Do emulated runs agree on what the tolls add to a step, and on what `explain` leaves unexplained?

    python benchmarks/added.py docs/evidence/emulated/*b300*.json

Of each run with cc=emulated, over its pairs of blocks, what a tolled step takes longer than a plain one; of those that
explain it too what is unexplained. Then the runs' mean, weighted by their errors, with its 95 % interval, and whether
they scatter by more than these: chi squared, and the chance of as much where they agree. Other files are passed over.
The last line of stdout is one JSON object; nothing is run.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import chi2, t

from cctrain import ratios
from cctrain.comparison.arms import added_s, arms_of, paired_blocks
from cctrain.emulation.profile import emulated_note
from cctrain.errors import RequestError
from cctrain.load import Run, read_runs

_CI95 = 1.96


@dataclass(frozen=True, slots=True)
class Estimate:
    """Milliseconds a step, of one run."""

    value: float
    half_width: float
    """Of the 95 % t interval over the run's rounds."""
    num_rounds: int

    @property
    def error(self) -> float:
        """The standard error."""
        return self.half_width / float(t.ppf(0.975, self.num_rounds - 1))

    def __str__(self) -> str:
        return f"{self.value:6.1f} +- {self.half_width:5.1f} ms, {self.num_rounds:2} rounds"


def added_of(run: Run) -> Estimate | None:
    """By the tolls; None below two pairs of steady blocks, which have no interval."""
    pairs = paired_blocks(*arms_of(run))
    return _estimate(*ratios.mean(added_s(pairs)), len(pairs)) if pairs else None


def unexplained_of(run: Run) -> Estimate | None:
    """None where the run does not explain its loss, or has no interval of it."""
    found = run.explain or {}
    ci95 = found.get("unexplained_ci95")
    return _estimate(found["unexplained_s"], ci95, found["num_rounds"]) if ci95 else None


def _estimate(seconds: float, ci95: Sequence[float] | None, num_rounds: int) -> Estimate | None:
    return Estimate(1e3 * seconds, 1e3 * (ci95[1] - ci95[0]) / 2, num_rounds) if ci95 else None


def pooled(estimates: Sequence[Estimate]) -> dict[str, Any]:
    """Their weighted mean in milliseconds, and how they scatter around it."""
    values = np.array([one.value for one in estimates])
    weights = np.array([one.error**-2 for one in estimates])
    mean = float(np.average(values, weights=weights))
    chi_squared = float((weights * (values - mean) ** 2).sum())
    return {
        "num_runs": len(values),
        "mean_ms": mean,
        "half_width_ms": _CI95 / math.sqrt(weights.sum()),
        "chi_squared": chi_squared,
        "chance": float(chi2.sf(chi_squared, len(values) - 1)) if len(values) > 1 else None,
    }


def main() -> int:
    """Print a line a run and what they come to. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", type=Path, metavar="RUN", help="run.json, or a directory of some")
    flags = parser.parse_args()
    try:
        runs = [run for run in read_runs(flags.paths) if run.mode == "emulated"]
    except RequestError as error:
        parser.error(str(error))
    each = [(run, added_of(run), unexplained_of(run)) for run in runs]
    for run, added, unexplained in each:
        print(f"{run.path}: the tolls add {added or 'what it has no interval of'}")
        if unexplained:
            print(f"    unexplained {unexplained}")
    found = {"added": [added for _, added, _ in each if added], "unexplained": [rest for *_, rest in each if rest]}
    if not found["added"]:
        parser.error("no run with cc=emulated that has two pairs of steady blocks")
    means = {what: pooled(estimates) for what, estimates in found.items() if estimates}
    for what, mean in means.items():
        print(f"{what}, {mean['num_runs']} runs: {mean['mean_ms']:.1f} +- {mean['half_width_ms']:.1f} ms", end="")
        if mean["chance"] is not None:
            print(
                f"; chi squared {mean['chi_squared']:.1f}, as much in {mean['chance']:.0%} of cases by chance", end=""
            )
        print()
    print(json.dumps({**means, "emulated": emulated_note()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
