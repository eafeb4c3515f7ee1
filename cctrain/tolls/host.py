"""The CPU alone: copying memory, which a confidential guest's encryption may slow, and running Python.

The ratio of the Python loop between two machines is how much slower host code runs on the one.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from cctrain.tolls.record import Reading
from cctrain.tolls.sampling import Case, Switch, measure_cases

_BUDGET_S = 0.8
_BYTES = 256 << 20
_ITERATIONS = 100_000


def can_run() -> str | None:
    """Every machine can."""
    return None


def measure(switch: Switch | None = None) -> list[Reading]:
    """One thread's rate of memcpy, and nanoseconds of one turn of a Python loop."""
    source, target = np.ones(_BYTES, np.uint8), np.ones(_BYTES, np.uint8)
    cases = [
        Case(
            "host_memcpy", "GB/s", {"bytes": _BYTES}, lambda: _BYTES / seconds(lambda: np.copyto(target, source)) / 1e9
        ),
        Case("host_python", "ns", {}, lambda: seconds(_count) / _ITERATIONS * 1e9),
    ]
    return measure_cases(cases, _BUDGET_S, switch)


def seconds(call: Callable[[], object]) -> float:
    """How long the host takes for the call."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def _count() -> int:
    total = 0
    for number in range(_ITERATIONS):
        total += number & 7
    return total
