"""Which point to try next, and when to stop: a pure function of what was seen so far.

The first trial is the recipe as it stands. From then on the point with the largest expected improvement of the rate is
tried (Jones, Schonlau and Welch, "Efficient global optimization of expensive black-box functions", 1998), times the
chance that it fits into memory, keeps enough, and is of a kind that runs at all. It is over when no untried point has
a chance of CHANCE to be faster by GAIN than the best so far. What runs a trial is passed in, so that a search over a
recorded grid is the same search.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing
from scipy.special import ndtr

from cctrain.tune import expected
from cctrain.tune.memory import fit_memory
from cctrain.tune.point import FAILED, Observation, Point, Work
from cctrain.tune.step_time import Asked, Prior, asked, fit_step_time

GAIN, CHANCE = 0.01, 0.02
"""A search ends when no untried point has this chance of being faster by this share."""
_HOPELESS = 0.02
"""A point with less than this chance of running, and running as wanted, is not tried."""
_MOST_FAILURES = 3
"""Trials that fail before any succeeds, until it is not worth trying more."""
_KINDS = (
    *(("step",), ("tensor",), ("is_replicated",), ("is_checkpointing",), ("packing",), ("seq_len",)),
    *(("step", "is_checkpointing"), ("step", "tensor"), ("step", "is_replicated"), ("step", "packing")),
)
"""What makes points of a kind, of which one failure says something of the others: a step that cannot be captured under
tensor parallelism may be so without."""
_AFTER_FAILURE = 0.3
"""Chance left to a point of a kind that has failed and never run, by failure."""

Floats = np.typing.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What is searched, and within which limits."""

    base: Point
    """The recipe as it stands."""
    points: Sequence[Point]
    """What may be chosen; the recipe as it stands is among them where the limits that the user named allow it."""
    works: Mapping[Point, Work]
    """Of all of these."""
    num_ranks: int
    prior: Prior
    memory_gib: float | None
    """Of the smallest GPU; None where there is none."""
    memory_margin: float
    """Fraction of it that is to stay free."""
    min_keep: float | None = None
    """The smallest keep ratio that is accepted, in emulated runs."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What to do next."""

    point: Point | None
    """None: stop."""
    why: str


@dataclass(frozen=True, slots=True)
class Result:
    """What a search came to."""

    seen: tuple[Observation, ...]
    best: Observation | None
    """The fastest of those that meet every limit; None where none does."""
    why: str
    """Why it stopped."""


def search(problem: Problem, trial: Callable[[Point], Observation], max_trials: int) -> Result:
    """Try points until none better is left, or `max_trials` are spent."""
    seen: list[Observation] = []
    while True:
        choice = next_point(problem, seen)
        if choice.point is None:
            return Result(tuple(seen), best(problem, seen), choice.why)
        if len(seen) == max_trials:
            return Result(tuple(seen), best(problem, seen), f"all {max_trials} trials of tune.max_trials are spent")
        seen.append(trial(choice.point))


def best(problem: Problem, seen: Sequence[Observation]) -> Observation | None:
    """The fastest that meets every limit."""
    return max((one for one in seen if is_allowed(problem, one)), key=lambda one: one.rate or 0.0, default=None)


def is_allowed(problem: Problem, one: Observation) -> bool:
    """Whether a trial may be recommended."""
    limit_gib = problem.memory_gib and problem.memory_gib * (1 - problem.memory_margin)
    return (
        one.is_complete
        and one.point in problem.points
        and not (limit_gib and one.peak_gib and one.peak_gib > limit_gib)
        and not (problem.min_keep and (one.keep_ratio is None or one.keep_ratio < problem.min_keep))
    )


def next_point(problem: Problem, seen: Sequence[Observation]) -> Choice:
    """The point whose trial is worth most after the trials `seen`, or why there is none."""
    if not seen:
        return Choice(problem.base, "the recipe as it stands")
    tried = {one.point for one in seen}
    left = [point for point in problem.points if point not in tried]
    if not left:
        return Choice(None, f"all {len(problem.points)} settings were tried")
    if all(one.outcome == FAILED for one in seen) and len(seen) >= _MOST_FAILURES:
        return Choice(None, f"the first {len(seen)} trials all failed")
    memory = fit_memory(problem.works, seen, problem.memory_gib, problem.memory_margin)
    chances = np.array([memory.chance(point) * _runs(point, seen) for point in left])
    rates, errors = _log_rates(problem, seen, left)
    if problem.min_keep:
        chances *= _keeps(problem, seen, left, rates, errors)
    if chances.max() < _HOPELESS:
        return Choice(None, "no untried setting is likely to run within the limits")
    return _most_promising(left, best(problem, seen), chances, rates, errors)


def _most_promising(
    left: Sequence[Point], found: Observation | None, chances: Floats, rates: Floats, errors: Floats
) -> Choice:
    if not found or not found.rate:
        return Choice(left[int(np.argmax(chances * np.exp(rates - rates.max())))], "the likeliest to run well")
    ahead = rates - math.log(found.rate)
    if (chances * ndtr((ahead - math.log1p(GAIN)) / errors)).max() < CHANCE:
        share = f"{CHANCE:.0%} chance of being {GAIN:.0%} faster"
        return Choice(None, f"by the model none of the {len(left)} untried settings has a {share} than the best")
    z = ahead / errors
    improvement = errors * (z * ndtr(z) + np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi))
    return Choice(left[int(np.argmax(chances * improvement))], "the largest expected improvement")


def _log_rates(problem: Problem, seen: Sequence[Observation], points: Sequence[Point]) -> tuple[Floats, Floats]:
    """Logarithms of real tokens/s/GPU of `points`, and their standard deviations."""
    times, errors = _log_times(problem, seen, points, [one.step_time_s for one in seen if one.is_complete])
    return _log_tokens(problem, seen, points) - times, errors


def _log_tokens(problem: Problem, seen: Sequence[Observation], points: Sequence[Point]) -> Floats:
    """Of the real tokens of a step and rank."""
    rows = np.array([expected.real_tokens(problem.works, seen, point) for point in points])
    return np.asarray(np.log(rows * [point.global_batch for point in points] / problem.num_ranks))


def _keeps(
    problem: Problem, seen: Sequence[Observation], points: Sequence[Point], rates: Floats, errors: Floats
) -> Floats:
    """Chance of each point to keep as much as is wanted: plain over tolled step time, both by the model."""
    assert problem.min_keep
    plain, plain_errors = _log_times(problem, seen, points, [one.plain_step_time_s for one in seen if one.is_complete])
    kept = plain - (_log_tokens(problem, seen, points) - rates)
    return np.asarray(ndtr((kept - math.log(problem.min_keep)) / np.hypot(errors, plain_errors)))


def _log_times(
    problem: Problem, seen: Sequence[Observation], points: Sequence[Point], times: Sequence[float | None]
) -> tuple[Floats, Floats]:
    complete = [one for one in seen if one.is_complete]
    known = [(one, math.log(time)) for one, time in zip(complete, times, strict=True) if time]
    fitted = fit_step_time(
        problem.prior, _asked(problem, complete, [one.point for one, _ in known]), np.array([log for _, log in known])
    )
    return fitted.predict(_asked(problem, complete, points))


def _asked(problem: Problem, seen: Sequence[Observation], points: Sequence[Point]) -> Asked:
    crossings = np.array([expected.crossings(problem.works, seen, point) for point in points])
    padding = np.array([expected.padding(problem.works, seen, point) for point in points])
    return asked(points, problem.works, crossings, padding)


def _runs(point: Point, seen: Sequence[Observation]) -> float:
    """Chance that a point runs at all: less for a kind of which trials failed and none succeeded, where others did."""
    chance = 1.0
    if any(one.is_complete for one in seen):
        for names in _KINDS:
            alike = [one for one in seen if all(getattr(one.point, name) == getattr(point, name) for name in names)]
            if not any(one.is_complete for one in alike):
                chance = min(chance, _AFTER_FAILURE ** sum(one.outcome == FAILED for one in alike))
    return chance
