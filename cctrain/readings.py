"""Readings of the GPUs (`platform/telemetry.py`) to what they drew and how they were clocked while steps were measured.

Only what lies inside the given spans counts, so that validation, checkpoints and set-up are left out as they are from
step times.
"""

from __future__ import annotations

import dataclasses
import statistics
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any

from cctrain.samples import parse_line

_MOST_APART_S = 5.0
"""Readings further apart do not tell where between them the counter stood when a span began or ended."""
_MOST = 1e18
"""More than any reading can be; infinity is more, and a NaN is not less."""
_REASONS = (
    *("gpu_idle", "applications_clocks_setting", "sw_power_cap", "hw_slowdown", "sync_boost", "sw_thermal_slowdown"),
    *("hw_thermal_slowdown", "hw_power_brake_slowdown", "display_clock_setting", "board_limit", "reliability"),
    *(f"bit_{bit}" for bit in range(11, 60)),
)
"""NVML's names of the bits of `clocks_event_reasons`, the lowest first, then those that have none yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuUse:
    """One GPU inside the spans, or all together. Null is what the readings do not say."""

    energy_j: float | None
    """By the GPU's own counter, interpolated where a span begins or ends between readings. Null where readings do not
    cover the spans or the counter went backwards; of all GPUs the sum, null where one of them is."""
    power_w: float | None
    """Mean of the readings; of all GPUs the sum, null where one of them is."""
    sm_clock_mhz: dict[str, float] | None
    """min, median and max of the readings."""
    max_temperature_c: float | None
    throttle_share: dict[str, float] | None
    """Why clocks were held back, being idle left out -> share of the readings that say so, 0 to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpusUse:
    """The GPUs that were read, those of one machine."""

    seconds: float
    """Length of the spans together."""
    num_readings: int
    """Inside the spans."""
    total: GpuUse
    gpus: tuple[GpuUse, ...]


def reduce_readings(lines: Iterable[str], spans: Iterable[tuple[float, float]]) -> GpusUse | None:
    """What the GPUs did inside `spans`, (begin, end) in Unix seconds. None without a reading or a span.

    A line that is cut short or no reading is left out, and so is a quantity that is no number.
    """
    readings, joined = _parse(lines), _join(spans)
    if not readings or not joined:
        return None
    begins = [begin for begin, _ in joined]
    inside = [gpus for at, gpus in readings if (after := bisect_right(begins, at)) and at <= joined[after - 1][1]]
    uses = []
    for gpu in range(len(readings[0][1])):
        counter = [(at, joules) for at, gpus in readings for joules in _numbers([gpus[gpu]], "energy_j")]
        uses.append(_use([gpus[gpu] for gpus in inside], _energy_j(counter, joined)))
    total = _use(list(chain.from_iterable(inside)), _sum([use.energy_j for use in uses]))
    return GpusUse(
        seconds=sum(end - begin for begin, end in joined),
        num_readings=len(inside),
        total=dataclasses.replace(total, power_w=_sum([use.power_w for use in uses])),
        gpus=tuple(uses),
    )


def _parse(lines: Iterable[str]) -> list[tuple[float, list[dict[str, Any]]]]:
    """Time and GPUs of each reading, oldest first, all of as many GPUs."""
    readings: dict[float, list[dict[str, Any]]] = {}
    for line in lines:
        parsed = parse_line(line) or {}
        gpus = parsed.get("gpus")
        if isinstance(gpus, list) and gpus and all(isinstance(gpu, dict) for gpu in gpus):
            readings |= dict.fromkeys(_numbers([parsed], "time"), gpus)
    num_gpus = statistics.mode(map(len, readings.values())) if readings else 0
    return [(at, readings[at]) for at in sorted(readings) if len(readings[at]) == num_gpus]


def _numbers(rows: Sequence[dict[str, Any]], name: str) -> list[Any]:
    values: list[Any] = [row.get(name) for row in rows]
    return [value for value in values if type(value) in (int, float) and 0 <= value < _MOST]


def _join(spans: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The same time in spans that neither touch nor overlap, oldest first."""
    joined: list[tuple[float, float]] = []
    for begin, end in sorted(span for span in spans if span[0] < span[1]):
        if joined and begin <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((begin, end))
    return joined


def _energy_j(counter: Sequence[tuple[float, float]], spans: Sequence[tuple[float, float]]) -> float | None:
    times, total = [at for at, _ in counter], 0.0
    for begin, end in spans:
        first, last = bisect_right(times, begin) - 1, bisect_left(times, end)
        if first < 0 or last == len(times):
            return None
        around = counter[first : last + 1]
        if any(after < before for (_, before), (_, after) in pairwise(around)):
            return None
        if max(times[first + 1] - times[first], times[last] - times[last - 1]) > _MOST_APART_S:
            return None
        total += _at(end, *around[-2:]) - _at(begin, *around[:2])
    return total


def _at(time: float, before: tuple[float, float], after: tuple[float, float]) -> float:
    return before[1] + (after[1] - before[1]) * (time - before[0]) / (after[0] - before[0])


def _use(rows: Sequence[dict[str, Any]], energy_j: float | None) -> GpuUse:
    power, clocks = _numbers(rows, "power_w"), _numbers(rows, "sm_clock_mhz")
    return GpuUse(
        energy_j=energy_j,
        power_w=statistics.fmean(power) if power else None,
        sm_clock_mhz={"min": min(clocks), "median": statistics.median(clocks), "max": max(clocks)} if clocks else None,
        max_temperature_c=max(_numbers(rows, "temperature_c"), default=None),
        throttle_share=_shares([bits for bits in _numbers(rows, "clocks_event_reasons") if isinstance(bits, int)]),
    )


def _shares(readings: Sequence[int]) -> dict[str, float] | None:
    if not readings:
        return None
    counts = Counter(readings).items()
    shares = [sum(count for bits, count in counts if bits >> bit & 1) / len(readings) for bit in range(len(_REASONS))]
    return {name: share for name, share in zip(_REASONS, shares, strict=True) if share and name != "gpu_idle"}


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
