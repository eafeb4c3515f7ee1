"""Allocation by the driver itself, as cudaMalloc and cudaMallocHost do it; PyTorch's caches hide most of these."""

from __future__ import annotations

import time

from cctrain.tolls import driver
from cctrain.tolls.device import can_run
from cctrain.tolls.record import Reading
from cctrain.tolls.sampling import Case, Switch, measure_cases

__all__ = ["can_run", "measure"]

_GROUPS = (({"device": 2 << 20, "host": 1 << 20}, 0.4), ({"device": 256 << 20}, 0.2), ({"host": 64 << 20}, 0.6))
"""Bytes, and seconds for these: in turn with one of 24 ms, shorter ones would be measured seldom."""


def measure(switch: Switch | None = None) -> list[Reading]:
    """Microseconds to allocate device memory and pinned host memory; freeing it is left out."""
    readings = []
    for sizes, budget_s in _GROUPS:
        readings += measure_cases([_case(where, size) for where, size in sizes.items()], budget_s, switch)
    return readings


def _case(where: str, num_bytes: int) -> Case:
    def allocate_us() -> float:
        begin = time.perf_counter()
        free = driver.allocate(where, num_bytes)
        duration_us = (time.perf_counter() - begin) * 1e6
        free()
        return duration_us

    return Case("alloc", "us", {"where": where, "bytes": num_bytes}, allocate_us)
