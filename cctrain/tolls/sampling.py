"""Blocks of calls to what an undisturbed call takes, over cases measured in turn, in one process."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cctrain.tolls.record import Facts, Reading, is_rate

Switch = Callable[[bool], object]
"""Puts the process under the tolls of a profile, or under none."""
_FEWEST_ROUNDS = 3
_MOST_CORES, _CORE_S = 16, 0.06
"""Cores that a process goes over, evenly spread, and how long it stays: most blocks find a core warm, and in most
budgets it comes to all of them."""
_SIBLINGS = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"


@dataclass(frozen=True, slots=True)
class Case:
    """One thing to measure."""

    name: str
    unit: str
    conditions: Facts
    block: Callable[[], float]
    """Times some calls and returns the value, in `unit`."""


def measure_cases(
    cases: Sequence[Case],
    budget_s: float,
    switch: Switch | None = None,
    *,
    agree: Callable[[bool], bool] | None = None,
    rank: int = 0,
    num_ranks: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Reading]:
    """One block of every case in turn, until `budget_s` is over; a first one of each is set aside. With `switch`
    each is timed twice, with and without tolls, in turns, and the budget is twice as long.

    In turn, so that whatever disturbs the machine for a second falls on all alike. The process goes from core to core,
    because on a shared host one may be 10 % slower than another. Of several ranks each has cores of its own, if there
    are enough, and `agree` has all stop after the same round. Python's garbage collector does not run meanwhile.
    """
    arms = (True, False) if switch else (True,)
    budget_s *= len(arms)
    blocks: list[dict[bool, list[float]]] = [{is_tolled: [] for is_tolled in arms} for _ in cases]

    def block(case: Case, is_tolled: bool) -> float:
        if switch:
            switch(is_tolled)
        return case.block()

    allowed = os.sched_getaffinity(0)
    cores = cores_of(rank, num_ranks, allowed)
    gc.collect()
    gc.disable()
    try:
        for case in cases:
            for is_tolled in arms:
                block(case, is_tolled)
        begin, is_over = clock(), False
        while not is_over:
            if cores:
                os.sched_setaffinity(0, {cores[int((clock() - begin) / _CORE_S) % len(cores)]})
            for case, values in zip(cases, blocks, strict=True):
                for is_tolled in arms:
                    values[is_tolled].append(block(case, is_tolled))
            arms = arms[::-1]  # neither always follows the other's traces
            is_over = len(blocks[0][True]) >= _FEWEST_ROUNDS and clock() - begin >= budget_s
            is_over = agree(is_over) if agree else is_over
    finally:
        os.sched_setaffinity(0, allowed)
        gc.enable()
    return [_reading(case, values) for case, values in zip(cases, blocks, strict=True)]


def cores_of(rank: int, num_ranks: int, allowed: Iterable[int], siblings: str = _SIBLINGS) -> list[int]:
    """What one of several ranks goes over: its part of the physical cores, a hardware thread of each; none where there
    are not as many as ranks. `siblings` is where the kernel lists the threads of a core."""
    physical: dict[str, int] = {}
    for core in sorted(allowed):
        path = Path(siblings.format(core))
        physical.setdefault(path.read_text(encoding="utf-8") if path.exists() else str(core), core)
    cores = list(physical.values())
    own = cores[rank * len(cores) // num_ranks : (rank + 1) * len(cores) // num_ranks]
    return own[:: max(1, -(-len(own) // _MOST_CORES))] if len(cores) >= num_ranks else []


def _reading(case: Case, blocks: Mapping[bool, Sequence[float]]) -> Reading:
    return Reading(
        name=case.name,
        unit=case.unit,
        value=undisturbed(blocks[True], case.unit),
        interval=None,  # blocks of one process share its luck
        num_blocks=len(blocks[True]),
        conditions=case.conditions,
        plain_value=undisturbed(blocks[False], case.unit) if False in blocks else None,
    )


def undisturbed(blocks: Sequence[float], unit: str) -> float:
    """The tenth percentile of times, the ninetieth of rates: contention only slows, so the best blocks tell what a call
    takes by itself, and the very best are luck."""
    return sorted(blocks, reverse=is_rate(unit))[len(blocks) // 10]
