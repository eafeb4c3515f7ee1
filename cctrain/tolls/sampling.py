"""Blocks of calls to readings: medians with an interval, over cases measured in turn."""

from __future__ import annotations

import gc
import itertools
import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cctrain.tolls.record import Facts, Reading

_FEWEST_ROUNDS, _MOST_ROUNDS = 7, 300


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
    *,
    is_on_every_core: bool = False,
    agree: Callable[[bool], bool] = lambda is_over: is_over,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Reading]:
    """One block of every case in turn, until `budget_s` is over; a first one of each is set aside.

    In turn, so that whatever disturbs the machine for a second falls on all alike and on no median. With
    `is_on_every_core` each round runs on the next of the process's cores: on a shared host one may be 10 % slower than
    another, and where a process lands differs from run to run. `agree` has all ranks of a job stop after the same
    round. Python's garbage collector does not run meanwhile.
    """
    blocks: list[list[float]] = [[] for _ in cases]
    allowed = os.sched_getaffinity(0)
    cores = itertools.cycle(sorted(allowed))
    gc.collect()
    gc.disable()
    try:
        for case in cases:
            case.block()
        begin = clock()
        for num_rounds in range(1, _MOST_ROUNDS + 1):
            if is_on_every_core:
                os.sched_setaffinity(0, {next(cores)})
            for case, values in zip(cases, blocks, strict=True):
                values.append(case.block())
            if agree(num_rounds >= _FEWEST_ROUNDS and clock() - begin >= budget_s):
                break
    finally:
        os.sched_setaffinity(0, allowed)
        gc.enable()
    return [_reading(case, values) for case, values in zip(cases, blocks, strict=True)]


def _reading(case: Case, values: list[float]) -> Reading:
    return Reading(
        name=case.name,
        unit=case.unit,
        value=statistics.median(values),
        interval=median_interval(values),
        num_blocks=len(values),
        conditions=case.conditions,
    )


def median_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """95 % interval of the median of independent values of any distribution; None below six of them.

    The k-th smallest and k-th largest value: fewer than k of n values fall to one side of the true median with a
    chance that the binomial distribution knows.
    """
    ordered, rank, tail = sorted(values), 0, 1
    while tail * 40 <= 2 ** len(ordered):  # tail / 2^n: the chance that at most `rank` values lie below the median
        rank += 1
        tail += math.comb(len(ordered), rank)
    return (ordered[rank - 1], ordered[-rank]) if rank else None
