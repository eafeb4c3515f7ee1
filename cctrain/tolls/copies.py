"""Copies, each waited for: with CC on they go through the bounce buffer, sealed by the CPU.

A device-to-device copy never leaves the GPU; its rate counts bytes read and written, as other tools do. Pageable memory
is copied by the CPU, and how fast depends on where it lies: blocks of a megabyte and more go from place to place.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

import torch

from cctrain.tolls.device import and_wait, can_run, time_us, transfer
from cctrain.tolls.record import Reading
from cctrain.tolls.sampling import Case, Switch, measure_cases

__all__ = ["can_run", "measure", "num_calls"]

_GROUPS = (((64, 4 << 10, 64 << 10, 1 << 20), 1.2), ((16 << 20, 64 << 20, 256 << 20), 2.4), ((1 << 30,), 2.4))
"""Bytes, and seconds for all copies of these sizes: in turn with a copy of a gigabyte, which leaves every cache cold,
the small ones would be measured seldom, and slow."""
_D2D_SIZES = (64, 1 << 20, 1 << 30)
_LARGEST = 1 << 30
_MEMORY = ("pinned", "pageable")
_MOST_CALLS, _BLOCK_BYTES = 50, 16 << 20
_MOST_PLACES, _PLACED_BYTES = 64, 1 << 20


def measure(switch: Switch | None = None) -> list[Reading]:
    """Microseconds, or GB/s from 16 MiB on, of a copy and the wait for it."""
    device, other = (torch.ones(_LARGEST, dtype=torch.uint8, device="cuda") for _ in range(2))
    hosts = {memory: torch.ones(_LARGEST, dtype=torch.uint8, pin_memory=memory == "pinned") for memory in _MEMORY}
    readings = []
    for sizes, budget_s in _GROUPS:
        cases = [
            _case(direction, memory, host, device[:size])
            for memory, host in hosts.items()
            for direction in ("h2d", "d2h")
            for size in sizes
        ]
        cases += [_case("d2d", "device", other, device[:size]) for size in sizes if size in _D2D_SIZES]
        readings += measure_cases(cases, budget_s, switch)
    return readings


def num_calls(num_bytes: int) -> int:
    """Copies of a block."""
    return max(1, min(_MOST_CALLS, _BLOCK_BYTES // num_bytes))


def _case(direction: str, memory: str, other: torch.Tensor, device: torch.Tensor) -> Case:
    """Copies between `device` and as much of `other`."""
    num_bytes = device.numel()
    blocks = []
    for start in places(num_bytes) if memory == "pageable" else [0]:
        there = other[start : start + num_bytes]
        target, source = (device, there) if direction == "h2d" else (there, device)
        blocks.append(_block(target, source))
    block = in_turn(blocks)
    times = 2 if direction == "d2d" else 1
    return transfer("copy", {"direction": direction, "memory": memory}, num_bytes, block, times)


def places(num_bytes: int) -> range:
    """Where in _LARGEST bytes a pageable copy begins, spread evenly; a small one, which caches hold, in one place."""
    if num_bytes < _PLACED_BYTES:
        return range(1)
    num_places = min(_MOST_PLACES, _LARGEST // num_bytes)
    return range(0, _LARGEST, _LARGEST // num_places)


def in_turn(blocks: list[Callable[[], float]]) -> Callable[[], float]:
    """Each of them twice in a row, so that both arms of a round have the same."""
    turns = itertools.cycle([block for block in blocks for _ in range(2)])

    def block() -> float:
        return next(turns)()

    return block


def _block(target: torch.Tensor, source: torch.Tensor) -> Callable[[], float]:
    copy = and_wait(functools.partial(target.copy_, source, non_blocking=True))
    num = num_calls(source.numel())
    timed = time_us(copy, num)

    def warm() -> float:
        copy()  # the first in a new place finds no cache warm
        return timed()

    return warm if num > 1 else timed
