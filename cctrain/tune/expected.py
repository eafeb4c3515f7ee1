"""What a point's rows will hold and how often it crosses to the GPU, from the trials so far."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from cctrain.tune.point import Observation, Point, Work

Works = Mapping[Point, Work]
_KIND = ("step", "is_replicated", "is_checkpointing")
"""What sets the number of crossings, most of all first."""


def crossings(works: Works, seen: Sequence[Observation], point: Point) -> float:
    """Of a micro-batch: as counted in trials of the same kind, else the expectation, off as it is of other trials."""
    counted = [
        (tuple(getattr(one.point, name) == getattr(point, name) for name in _KIND), ratio)
        for one in seen
        if one.crossings
        for ratio in (one.crossings / one.point.accumulation / works[one.point].crossings,)
    ]
    nearest = max((kind for kind, _ in counted if kind[0]), default=None)
    ratios = [ratio for kind, ratio in counted if kind == nearest]
    return works[point].crossings * (sum(ratios) / len(ratios) if ratios else 1.0)


def real_tokens(works: Works, seen: Sequence[Observation], point: Point) -> float:
    """Of a row: the mean of trials with rows alike, else as large a share of its length as in the others."""
    rows = [(one, one.real_tokens / one.point.global_batch) for one in seen if one.real_tokens]
    alike = [real for one, real in rows if _rows_of(one.point) == _rows_of(point)]
    if alike:
        return sum(alike) / len(alike)
    shares = [real / works[one.point].row_tokens for one, real in rows]
    return works[point].row_tokens * (sum(shares) / len(shares) if shares else 1.0)


def padding(works: Works, seen: Sequence[Observation], point: Point) -> float:
    """Padded tokens of a row over its nominal length. Where samples differ in length a larger micro-batch pads them to
    a longer one: a straight line in its doublings, level until trials of two sizes say otherwise."""
    found = [
        (math.log2(one.point.micro_batch), one.padded_tokens / (one.point.global_batch * works[one.point].row_tokens))
        for one in seen
        if one.padded_tokens and bool(one.point.packing) == bool(point.packing)
    ]
    if not found:
        return 1.0
    sizes, ratios = np.array(found).T
    spread = sizes - sizes.mean()
    slope = float(spread @ ratios / (spread @ spread)) if spread.any() else 0.0
    line = float(ratios.mean()) + slope * (math.log2(point.micro_batch) - float(sizes.mean()))
    return min(max(line, 0.5 * float(ratios.min())), 2 * float(ratios.max()))


def _rows_of(point: Point) -> tuple[int | None, int]:
    return point.seq_len, point.packing
