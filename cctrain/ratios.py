"""How much throughput is kept: ratios of runs, their 95 % intervals, verdicts, and how many runs would settle them.

Steps of one run share its clocks and its place; runs do not. So the replicate is the run (Kalibera and Jones,
"Rigorous benchmarking in reasonable time", 2013), and its figure is one number. Ratios are taken as logarithms, in
which "twice as fast" and "half as fast" are equally far from 1, and get Student's t interval: of the pairs' log ratios
where runs were interleaved, else Welch's (Biometrika 34, 1947) of two samples of unequal spread.

Simulated (tests/unit/test_ratios.py): with 3, 5 and 10 pairs a nominal 95 % covers the truth in 94 to 96 %, Welch's in
94 to 97 %.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing
from scipy.special import stdtrit

MARGIN = 0.01
"""A keep ratio within 1 +- this is called free, where nothing else is asked for."""
ASSUMED_SPREAD = 0.01
"""Standard deviation of one run's throughput from run to run that is assumed where it cannot be known. Clean nodes vary
by 0.03-0.10 % (MLPerf training v5.1 logs), machines whose host is shared by some percent."""
CHANCE = 0.8
"""With which the number of runs that is asked for is to settle the matter."""
_MOST_RUNS = 100

Floats = np.typing.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class MoreRuns:
    """How many further runs of each kind would settle what is unclear."""

    num: int | None
    """None: more than 100, as the ratio lies where no verdict is near."""
    spread: float
    """Relative standard deviation of a run's throughput from run to run, or of a ratio within one run."""
    is_assumed: bool


def paired(log_ratios: Floats) -> tuple[Floats, Floats]:
    """Mean and half-width of its 95 % t interval over the last axis, which holds one log ratio (or difference) a pair,
    two at least."""
    num = log_ratios.shape[-1]
    error = log_ratios.std(axis=-1, ddof=1) / math.sqrt(num)
    return log_ratios.mean(axis=-1), stdtrit(num - 1, 0.975) * error


def welch(base: Floats, other: Floats) -> tuple[Floats, Floats]:
    """The same of other - base over the last axes, of two runs each at least, by Welch's unequal variances."""
    parts = [np.maximum(logs.var(axis=-1, ddof=1), 1e-300) / logs.shape[-1] for logs in (base, other)]
    weights = sum(part**2 / (logs.shape[-1] - 1) for part, logs in zip(parts, (base, other), strict=True))
    error2 = parts[0] + parts[1]
    freedom = np.maximum(1.0, error2**2 / np.maximum(weights, 1e-300))
    return other.mean(axis=-1) - base.mean(axis=-1), stdtrit(freedom, 0.975) * np.sqrt(error2)


def geometric_mean(values: Sequence[float]) -> tuple[float, tuple[float, float] | None]:
    """Of ratios, or of figures themselves, with its 95 % t interval; None for it where there is one value."""
    logs = np.log(np.asarray(values, dtype=float))
    return (math.exp(logs[0]), None) if len(logs) < 2 else _exp(*paired(logs))


def mean(values: Sequence[float]) -> tuple[float, tuple[float, float] | None]:
    """Of differences, one a pair, with its 95 % t interval; None for it where there is one value."""
    if len(values) < 2:
        return values[0], None
    middle, half = map(float, paired(np.asarray(values, dtype=float)))
    return middle, (middle - half, middle + half)


def ratio_of_runs(
    base: Sequence[float], other: Sequence[float], *, is_paired: bool
) -> tuple[float, tuple[float, float] | None]:
    """Other over base of one figure a run, with its 95 % interval; None for it below two runs of each."""
    logs = [np.log(np.asarray(values, dtype=float)) for values in (base, other)]
    if min(map(len, logs)) < 2:
        return math.exp(logs[1].mean() - logs[0].mean()), None
    return _exp(*(paired(logs[1] - logs[0]) if is_paired else welch(*logs)))


def widened(ratio: float, ci95: tuple[float, float], half_width: float) -> tuple[float, float]:
    """`ci95` of `ratio` from run to run, where the logarithms of all runs' ratios have an error in common as well, of
    that half-width: independent ones add up as squares."""
    half = math.hypot(math.log(ci95[1] / ratio), half_width)
    return ratio * math.exp(-half), ratio * math.exp(half)


def _exp(middle: Floats, half: Floats) -> tuple[float, tuple[float, float]]:
    return math.exp(middle), (math.exp(middle - half), math.exp(middle + half))


def spread_of_runs(base: Sequence[float], other: Sequence[float], *, is_paired: bool) -> float | None:
    """Standard deviation of the log ratio of one further run of each; None below two runs of each."""
    logs = [np.log(np.asarray(values, dtype=float)) for values in (base, other)]
    if min(map(len, logs)) < 2:
        return None
    return float((logs[1] - logs[0]).std(ddof=1)) if is_paired else math.hypot(*(each.std(ddof=1) for each in logs))


def verdict(ci95: tuple[float, float] | None, margin: float) -> str:
    """free: the interval lies within 1 +- margin, whether or not it holds 1; costs, gains: it lies below 1, above 1;
    unclear: none of these, or no interval."""
    if ci95 is None:
        return "unclear"
    low, high = ci95
    if 1 - margin <= low and high <= 1 + margin:
        return "free"
    return "costs" if high < 1 else "gains" if low > 1 else "unclear"


def more_runs(
    ratio: float,
    pair_spread: float | None,
    num_now: int,
    margin: float,
    *,
    within_run: float = 0.0,
    in_common: float = 0.0,
) -> MoreRuns:
    """What would make the interval, with a chance of 80 %, exclude 1 or lie within the margin, whichever is nearer;
    `in_common` is the half-width that no number of runs takes away (`widened`).

    `pair_spread` is the standard deviation of a pair's log ratio; None takes the larger of ASSUMED_SPREAD of each run
    and `within_run`, the standard error of the log ratio from the noise within the runs at hand.
    """
    is_assumed = pair_spread is None
    spread = max(math.sqrt(2) * ASSUMED_SPREAD, within_run) if pair_spread is None else pair_spread
    size = abs(math.log(ratio))
    distance = max(size, math.log1p(margin) - size)
    nums = np.arange(2, num_now + _MOST_RUNS + 1)
    reach = np.hypot((stdtrit(nums - 1, 0.975) + stdtrit(nums - 1, CHANCE)) * spread / np.sqrt(nums), in_common)
    enough = nums[reach <= distance]
    num = max(1, int(enough[0]) - num_now) if len(enough) else None
    return MoreRuns(num, spread / math.sqrt(2), is_assumed)
