"""Readings of the same thing by several processes to one reading.

How memory lies and which neighbours a core has stay with a process for its life, and a host may be disturbed for
seconds. So the replicate is the process: its blocks are no independent samples, and an interval from them alone misses
most of what two runs differ by. Contention only slows: the value is that of the least disturbed process.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from cctrain.tolls.record import Reading, is_rate

NUM_PROCESSES = 3


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
    """95 % interval of a process's value, geometric mean and Student's t; it holds all of the values. None for one."""
    from cctrain import ratios  # 0.35 s to import, for which `tolls --diff` need not wait

    if min(values) <= 0:
        return None
    _, ci95 = ratios.geometric_mean(values)
    return ci95 and (min(ci95[0], *values), max(ci95[1], *values))
