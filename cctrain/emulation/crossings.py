"""What steps crossed between CPU and GPU, from the samples: means per step."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from cctrain.emulation.arms import CUPTI, OPERATORS


def mean_crossings(ranks: Sequence[Mapping[int, Mapping[str, Any]]], steps: Sequence[int]) -> dict[str, Any] | None:
    """Mean over `steps` on the rank that crossed most; None where nothing was counted.

    `ranks` are what each rank's samples call `crossings`, by step: counted by the library (`launches`...), or on a CPU
    by its stand-in (`operators`).
    """
    counted = [[rows.get(step) for step in steps] for rows in ranks]
    if not steps or any(row is None for rows in counted for row in rows):
        return None
    means = [_mean([row for row in rows if row]) for rows in counted]
    most = max(means, key=lambda mean: float(mean.get("launches", mean.get("operators", 0))))
    return {"counted_by": OPERATORS if "operators" in most else CUPTI, **most}


def _mean(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    first = rows[0]
    return {
        key: _mean([row[key] for row in rows])
        if isinstance(value, Mapping)
        else statistics.fmean(row[key] for row in rows)
        for key, value in first.items()
    }
