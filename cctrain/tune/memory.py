"""Peak memory of a point: the doctor's estimate, corrected by what the trials took.

The estimate has a part that is there whatever the micro-batch is and a part that grows with it. Both are scaled by
factors that are near 1 before anything has run, and that two trials of different size determine. A trial that ran out
of memory says that it wanted more than there is. For a model without an estimate the two parts are a constant and the
tokens of a micro-batch, with factors that nothing is known of before two trials.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing
from scipy.optimize import least_squares
from scipy.special import ndtr

from cctrain.tune.point import OUT_OF_MEMORY, Observation, Point, Work

_KNOWN, _UNKNOWN = np.array([0.15, 0.4, 0.15]), np.array([2.0, 2.0, 0.15])
"""Standard deviations of the logarithms of the factors before anything has run: of the part that stays, of the part
that grows, and of what a graph's pool makes of the latter. tests/unit/test_doctor.py holds estimates against peaks."""
_NOISE = 0.02
"""Of the logarithm of a peak: samples differ in length, blocks in their rounding."""
_GIB_PER_TOKEN = 1e-3
"""Of a model without an estimate, with a factor of its own."""

Floats = np.typing.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class MemoryModel:
    """What is known of the peak after some trials."""

    works: Mapping[Point, Work]
    limit_gib: float | None
    """What a trial may take; None where the machine does not say, as on a CPU: then only what ran out is avoided."""
    factors: Floats
    """Logarithms."""
    covariance: Floats
    ran_out: tuple[Point, ...]

    def peak_gib(self, point: Point) -> float:
        """The peak that is expected."""
        return _peak(self.factors, _parts(self.works[point], point))

    def chance(self, point: Point) -> float:
        """Of fitting, 0 to 1."""
        if any(_takes_as_much(point, other, self.works) for other in self.ran_out):
            return 0.0
        if self.limit_gib is None:
            return 1.0
        slope = _slope(self.factors, _parts(self.works[point], point))
        error = math.sqrt(float(slope @ self.covariance @ slope) + _NOISE**2)
        return float(ndtr((math.log(self.limit_gib) - math.log(self.peak_gib(point))) / error))


def fit_memory(
    works: Mapping[Point, Work],
    seen: Sequence[Observation],
    memory_gib: float | None,
    margin: float,
) -> MemoryModel:
    """After the trials `seen`. `memory_gib` is what a GPU has, of which the fraction `margin` is to stay free."""
    is_known = all(work.memory_gib is not None for work in works.values())
    spreads = _KNOWN if is_known else _UNKNOWN
    peaks = [
        (_parts(works[one.point], one.point), math.log(one.peak_gib))
        for one in seen
        if one.is_complete and one.peak_gib
    ]
    ran_out = tuple(one.point for one in seen if one.outcome == OUT_OF_MEMORY)
    too_large = [_parts(works[point], point) for point in ran_out] if memory_gib else []

    def residuals(factors: Floats) -> Floats:
        off = [(math.log(_peak(factors, parts)) - peak) / _NOISE for parts, peak in peaks]
        # Wanting more than there is says nothing of how much more.
        short = [min(0.0, math.log(_peak(factors, parts) / (memory_gib or 1.0))) / _NOISE for parts in too_large]
        return np.array([*off, *short, *(factors / spreads)])

    found = least_squares(residuals, np.zeros(3))
    known = np.delete(found.jac, slice(len(peaks), len(peaks) + len(too_large)), axis=0)  # a bound makes nothing surer
    return MemoryModel(
        works=works,
        limit_gib=memory_gib and memory_gib * (1 - margin),
        factors=found.x,
        covariance=np.linalg.inv(known.T @ known),
        ran_out=ran_out,
    )


def _parts(work: Work, point: Point) -> tuple[float, float, bool]:
    stays, grows = work.memory_gib or (1.0, _GIB_PER_TOKEN * point.micro_batch * work.row_tokens)
    return stays, grows, point.step != "stock"


def _peak(factors: Floats, parts: tuple[float, float, bool]) -> float:
    stays, grows, is_graphed = parts
    return float(np.exp(factors[0]) * stays + np.exp(factors[1] + is_graphed * factors[2]) * grows)


def _slope(factors: Floats, parts: tuple[float, float, bool]) -> Floats:
    """Of the logarithm of the peak, by factor."""
    stays = float(np.exp(factors[0])) * parts[0] / _peak(factors, parts)
    return np.array([stays, 1 - stays, (1 - stays) * parts[2]])


def _takes_as_much(point: Point, other: Point, works: Mapping[Point, Work]) -> bool:
    """Whether a point surely takes the memory of another of its kind: it computes on as many tokens at once and, by the
    estimate, needs no less, as one does that holds no gradients beside its activations because it accumulates none."""
    is_same_kind = (
        point.step == other.step
        and point.tensor == other.tensor
        and point.data_ranks == other.data_ranks
        and point.is_replicated == other.is_replicated
        and point.is_checkpointing <= other.is_checkpointing
    )
    tokens, needed = zip(
        *((one.micro_batch * works[one].row_tokens, sum(_parts(works[one], one)[:2])) for one in (point, other)),
        strict=True,
    )
    return is_same_kind and tokens[0] >= tokens[1] and needed[0] >= needed[1]
