"""Readings of the same thing by several processes to one reading.

How memory lies and which neighbours a core has stay with a process for its life, and a host may be disturbed for
seconds. So the replicate is the process: its blocks are no independent samples, and an interval from them alone misses
most of what two runs differ by. Contention only slows: the value is that of the least disturbed process.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterable, Sequence

from cctrain.tolls.record import Reading, is_rate

NUM_PROCESSES = 3
_T_975 = {2: 12.706, 3: 4.303}
"""Student's t for so many values."""


def over_processes(readings: Iterable[Reading]) -> list[Reading]:
    """One reading of each thing, in the order in which they first come."""
    groups: dict[tuple[object, ...], list[Reading]] = {}
    for reading in readings:
        groups.setdefault(reading.key, []).append(reading)
    return [_combined(group) for group in groups.values()]


def _combined(group: Sequence[Reading]) -> Reading:
    best = max if is_rate(group[0].unit) else min
    values = tuple(reading.value for reading in group)
    plain_values = tuple(reading.plain_value for reading in group if reading.plain_value is not None)
    return dataclasses.replace(
        group[0],
        value=best(values),
        interval=t_interval(values),
        num_blocks=sum(reading.num_blocks for reading in group),
        process_values=values,
        plain_value=best(plain_values, default=None),
        plain_process_values=plain_values,
    )


def t_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """95 % interval of a process's value, geometric mean and Student's t; it holds all of two or three values. None for
    one."""
    if len(values) not in _T_975 or min(values) <= 0:
        return None
    logs = [math.log(value) for value in values]
    middle, half = statistics.fmean(logs), _T_975[len(logs)] * statistics.stdev(logs) / math.sqrt(len(logs))
    return (min(math.exp(middle - half), *values), max(math.exp(middle + half), *values))
