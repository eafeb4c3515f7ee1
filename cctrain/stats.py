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
MIN_STEPS_OF_A_CHANGE = 2 * MIN_STEPS
"""In fewer no change of level and no drift is looked for."""
_MSER_BATCH = 5
_NUM_BATCHES = 20
_SMALLEST_CHANGE = 0.005

Floats = np.typing.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Shift:
    """A lasting change of level: the first value after it, and by which fraction."""

    index: int
    change: float


@dataclass(frozen=True, slots=True)
class Drift:
    """A slope from the first value to the last, and by which fraction of their mean it changes them."""

    change: float


@dataclass(frozen=True, slots=True)
class Steady:
    """How many leading values to set aside; a shift found all the same; whether the values still drift after them."""

    cut: int
    shift: Shift | None
    is_settling: bool

    def why_not(self, numbers: Sequence[int]) -> str | None:
        """Why what is left is not steady, None where it is; `numbers` are those of the values' steps."""
        num_left = len(numbers) - self.cut
        if num_left < MIN_STEPS:
            return f"only {num_left} step{'s were' if num_left > 1 else ' was'} measured and {MIN_STEPS} are needed"
        if self.shift:
            changed = f"step times changed by {self.shift.change:+.1%} at step {numbers[self.shift.index]}"
            return f"{changed} and stayed there"
        return "step times drift through the run" if self.is_settling else None


@dataclass(frozen=True, slots=True)
class Interval:
    """Mean with the half-width of its 95 % interval; None where there is none."""

    mean: float
    half_width: float | None


def mser5(values: Sequence[float]) -> int:
    """How many leading values to set aside as warm-up: 0 up to half of them, in fives.

    MSER-5 is asked twice: a slow step late in the run would hide the rest of the warm-up, so once without spikes. And
    on autocorrelated values it often cuts off a chance excursion, after which the interval covers up to 5 % less, so
    none are set aside where their mean is within two standard errors of the rest's.
    """
    data = np.asarray(values, dtype=float)
    if len(data) < 4 * _MSER_BATCH or not np.isfinite(data).all():
        return 0
    smooth = _without_spikes(data)
    cut = max(_least_error_cut(data), _least_error_cut(smooth))
    if not cut:
        return 0
    rest = smooth[cut:]
    error = _spread(rest - rest.mean(), num_fitted=1) * math.sqrt(1 / cut + 1 / len(rest))
    return cut if abs(data[:cut].mean() - rest.mean()) > 2 * error else 0


def _least_error_cut(data: Floats) -> int:
    num_batches = len(data) // _MSER_BATCH
    batches = data[: num_batches * _MSER_BATCH].reshape(num_batches, _MSER_BATCH).mean(axis=1)
    from_last = (batches - batches[-1])[::-1]  # sums from the last batch on are sums over what a cut leaves
    left = np.arange(1, num_batches + 1)
    scores = (np.cumsum(from_last**2) - np.cumsum(from_last) ** 2 / left) / left**2
    return int(np.argmin(scores[::-1][: num_batches // 2 + 1])) * _MSER_BATCH


def find_steady(values: Sequence[float]) -> Steady:
    """Where the steady part of step times begins, and what speaks against there being one.

    MSER-5 sets aside whatever differs at the start, a lasting change in the first half included; so where it took more
    than a quarter, a change is looked for in all of the values, and only one within that quarter is warm-up. A slow
    step later on is neither warm-up nor a change: it is time that the run took, so it stays in the mean and widens the
    interval (the median does not see it). Values that are not all finite and above zero are never steady.

    Simulated (tests/unit/test_stats.py): of 20 to 500 steady AR(1) 0.5 values 2-3 % are called unsteady (0.8: 3-10 %).
    With 100 values and noise of up to 1 %, a lasting shift of 3 % is found in over 90 %, its step to within three, and
    a drift by 3 % in 85 %; and the mean of runs called steady is off by less than 0.3 % after a slow start, recompile
    spikes in the first third, and thermal settling by 3 % with a time constant of 20 steps. Of this last, 60 values
    leave 0.6 % and 30 leave 1.3 %: it takes a longer fixed warm-up.
    """
    if not _are_times(values):
        return Steady(0, None, is_settling=True)
    cut, quarter = mser5(values), len(values) / 4
    change = find_change(values) if cut > quarter else None
    if change is None or (isinstance(change, Shift) and change.index <= quarter):
        change = find_change(values[cut:], first=cut)
    return Steady(cut, change if isinstance(change, Shift) else None, isinstance(change, Drift))


def find_change(values: Sequence[float], first: int = 0) -> Shift | Drift | None:
    """The one place where the level of step times changed for good, or their drift, whichever fits better; else None.

    A shift is where two means leave the least squares; whether it or the drift is more than noise is judged by its size
    over its standard error. The threshold allows for the place having been chosen and the noise being estimated: it
    holds false alarms under 5 % on steady AR(1) 0.5 traces of 20 steps and more. Single outliers are pulled in first,
    and changes under half a percent are let pass. `first` is the index of the first value.
    """
    if len(values) < MIN_STEPS_OF_A_CHANGE or not _are_times(values):
        return None
    data = _without_spikes(np.asarray(values, dtype=float))
    index = _best_split(data, min_size=max(5, len(data) // 20))
    before, after = data[:index], data[index:]
    noise = np.concatenate([before - before.mean(), after - after.mean()])
    size, error = after.mean() - before.mean(), math.sqrt(1 / len(before) + 1 / len(after))
    found: Shift | Drift = Shift(first + index, float(size / before.mean()))

    places = np.arange(len(data)) - (len(data) - 1) / 2
    slope = (places @ data) / (places @ places)
    around_line = data - data.mean() - slope * places
    if around_line @ around_line < noise @ noise:
        noise, size, error = around_line, slope * len(data), len(data) / math.sqrt(places @ places)
        found = Drift(float(size / data.mean()))

    is_noise = abs(size) <= (3.2 + 36 / len(data)) * error * _spread(noise, num_fitted=2)
    return None if is_noise or abs(found.change) < _SMALLEST_CHANGE else found


def _best_split(data: Floats, min_size: int) -> int:
    """How many values the first of two parts has whose means leave the least squares; each has `min_size` or more."""
    places = np.arange(min_size, len(data) - min_size + 1)
    sums = np.cumsum(data - data.mean())[places - 1]
    return int(places[np.argmax(sums**2 / (places * (len(data) - places)))])


def batch_means(values: Sequence[float]) -> Interval:
    """Mean and 95 % interval from 20 to 39 batch means, whose own autocorrelation is allowed for as AR(1).

    There is no interval below MIN_STEPS values and, the mean then being NaN, where a value is not finite. Coverage of
    all values / of those that `mser5` leaves, simulated (tests/unit/test_stats.py):

        values   AR(1) 0       AR(1) 0.5     AR(1) 0.8
            30   96 / 94 %     94 / 88 %     92 / 84 %
            60   96 / 94 %     94 / 90 %     95 / 89 %
           100   96 / 95 %     95 / 92 %     95 / 91 %
           300   96 / 96 %     96 / 95 %     95 / 94 %

    Rare spikes that did not happen to fall into these values are not in the interval either.
    """
    data = np.asarray(values, dtype=float)
    if not len(data) or not np.isfinite(data).all():
        return Interval(math.nan, None)
    mean = float(data.mean())
    if len(data) < MIN_STEPS:
        return Interval(mean, None)
    size = max(1, len(data) // _NUM_BATCHES)
    batches = data[len(data) % size :].reshape(-1, size).mean(axis=1)
    noise = batches - batches.mean()
    effective = max(2.0, len(batches) / _times_worse(noise, num_fitted=1))  # as many independent ones say as much
    variance = float(noise @ noise) / len(batches) * effective / (effective - 1)
    return Interval(mean, float(stdtrit(effective - 1, 0.975)) * math.sqrt(variance / effective))


def rate_half_width(amounts: Sequence[float], times: Sequence[float], rate: float) -> float | None:
    """Of the 95 % interval of a `rate`, the sum of `amounts` over that of `times`, which steps of unequal length move
    together: the interval of what a step's amount is above the rate (the linearised, or delta, method)."""
    above = batch_means([amount - rate * time for amount, time in zip(amounts, times, strict=True)]).half_width
    return None if above is None else above / (math.fsum(times) / len(times))


def _spread(noise: Floats, num_fitted: int) -> float:
    """The standard deviation that independent noise would need for its means to vary as those of this noise."""
    return math.sqrt(float(noise @ noise) / len(noise) * _times_worse(noise, num_fitted))


def _times_worse(noise: Floats, num_fitted: int) -> float:
    """How often more AR(1) values than independent ones a mean needs, from the residuals of a fit of `num_fitted`."""
    power = float(noise @ noise)
    if not power:
        return 1.0
    memory = float(noise[1:] @ noise[:-1]) / power
    memory += num_fitted * (1 + 4 * memory) / len(noise)  # its bias (Marriott and Pope, 1954), once a fitted mean
    memory = min(0.95, max(-0.025, memory))  # cut off at 0, intervals of independent values would cover 96.5 %
    return (1 + memory) / (1 - memory)


def _without_spikes(data: Floats) -> Floats:
    median = np.median(data)
    spread = 1.4826 * np.median(np.abs(data - median))  # a standard deviation, for normal noise
    return np.asarray(np.clip(data, median - 5 * spread, median + 5 * spread)) if spread else data


def _are_times(values: Sequence[float]) -> bool:
    data = np.asarray(values, dtype=float)
    return bool(np.all(np.isfinite(data) & (data > 0)))
