"""Warm-up, steady state and intervals of one run's steps.

Steps of one run are autocorrelated, so the interval of their mean comes from batch means, and the start of the steady
state from MSER-5 (White, Cobb and Spratt, 2000): of all truncation points, the one that leaves the least standard error
of the mean.
These describe the noise within a run. Between modes the replicate is the run, not the step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing
from scipy.special import stdtrit  # scipy.stats takes 0.7 s to import

MIN_STEPS = 10
"""Fewer steady steps than this give no interval and no steady state."""
_MSER_BATCH = 5
_NUM_BATCHES = 10
_SMALLEST_SHIFT = 0.005


Floats = np.typing.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Shift:
    """A lasting change of level: the first value after it, and by which fraction."""

    index: int
    change: float


@dataclass(frozen=True, slots=True)
class Steady:
    """How many leading values to set aside; a shift found all the same; whether the values still settle after them."""

    cut: int
    shift: Shift | None
    is_settling: bool


@dataclass(frozen=True, slots=True)
class Interval:
    """Mean with the half-width of its 95 % interval; None where there is none."""

    mean: float
    half_width: float | None


def mser5(values: Sequence[float]) -> int:
    """How many leading values to set aside: 0 up to half of them."""
    batches = _means_of_five(values)
    if len(batches) < 4:
        return 0
    best, best_score = 0, math.inf
    for cut in range(len(batches) // 2 + 1):
        rest = batches[cut:]
        score = float(np.sum((rest - rest.mean()) ** 2)) / len(rest) ** 2
        if score < best_score:
            best, best_score = cut, score
    return best * _MSER_BATCH


def _means_of_five(values: Sequence[float]) -> Floats:
    num_batches = len(values) // _MSER_BATCH
    batches = np.asarray(values[: num_batches * _MSER_BATCH], dtype=float).reshape(num_batches, _MSER_BATCH)
    return np.asarray(batches.mean(axis=1))


def find_steady(values: Sequence[float]) -> Steady:
    """Where the steady part of `values` begins, and what speaks against there being one.

    MSER-5 sets aside whatever differs at the start, a lasting change in the first half included; so where it took more
    than a quarter, a shift is looked for in all of the values and not in the rest alone. Altogether at most 5 % of
    steady AR(1) 0.5 traces of 30 to 300 values are called unsteady (simulated, tests/unit/test_stats.py).
    """
    cut = mser5(values)
    shift = find_shift(values) if cut > len(values) / 4 else None
    if shift is None:
        rest = find_shift(values[cut:])
        shift = rest and Shift(cut + rest.index, rest.change)
    limit = len(values) // _MSER_BATCH // 2 * _MSER_BATCH
    # Of fewer values MSER-5 often takes all it may by chance: of 50 in 10 % of steady traces, of 100 in 2 to 4 %.
    return Steady(cut, shift, is_settling=len(values) >= 100 and cut >= limit)


def find_shift(values: Sequence[float]) -> Shift | None:
    """The one place where the level of `values` changed for good, or None where it did not.

    ruptures' kernel detector says where; whether it is more than noise is judged by the difference of the two levels
    over its standard error, with the noise taken as AR(1). The threshold keeps false alarms under 5 % on steady AR(1)
    0.5 traces of 30 steps and more (simulated, tests/unit/test_stats.py). Single outliers are pulled in first, and
    shifts under half a percent are let pass.
    """
    if len(values) < 2 * MIN_STEPS:
        return None
    from ruptures import KernelCPD  # 0.6 s to import

    data = _without_spikes(np.asarray(values, dtype=float))
    detector = KernelCPD(kernel="linear", min_size=max(5, len(data) // 20)).fit(data.reshape(-1, 1))
    index = int(detector.predict(n_bkps=1)[0])
    before, after = data[:index], data[index:]
    noise = np.concatenate([before - before.mean(), after - after.mean()])
    power = float(np.sum(noise**2))
    memory = min(0.95, max(0.0, float(np.sum(noise[1:] * noise[:-1])) / power + 1 / len(data))) if power else 0.0
    variance = power / len(data) * (1 + memory) / (1 - memory)
    error = math.sqrt(variance * (1 / len(before) + 1 / len(after)))
    change = float(after.mean() / before.mean() - 1)
    if abs(change) < _SMALLEST_SHIFT or abs(after.mean() - before.mean()) <= (3.3 + 42 / len(data)) * error:
        return None
    return Shift(index, change)


def _without_spikes(data: Floats) -> Floats:
    median = np.median(data)
    spread = 1.4826 * np.median(np.abs(data - median))  # a standard deviation, for normal noise
    return np.asarray(np.clip(data, median - 5 * spread, median + 5 * spread)) if spread else data


def batch_means(values: Sequence[float]) -> Interval:
    """Mean and 95 % interval from ten batch means; the interval is None below MIN_STEPS values.

    On AR(1) traces with 0 / 0.5 / 0.8 it covers 95 / 93 / 88 % with 100 steps and 95 / 87 / 68 % with 30: short runs
    with slow noise are less certain than they look (4,000 simulated traces each, as in tests/unit/test_stats.py).
    """
    data = np.asarray(values, dtype=float)
    if len(data) < MIN_STEPS:
        return Interval(float(data.mean()), None)
    size = len(data) // _NUM_BATCHES
    kept = data[len(data) - size * _NUM_BATCHES :]
    means = kept.reshape(_NUM_BATCHES, size).mean(axis=1)
    half = float(stdtrit(_NUM_BATCHES - 1, 0.975) * means.std(ddof=1) / math.sqrt(_NUM_BATCHES))
    return Interval(float(data.mean()), half)
