"""Copies, each waited for: with CC on they go through the bounce buffer, sealed by the CPU.

A device-to-device copy never leaves the GPU; its rate counts bytes read and written, as other tools do.
"""

from __future__ import annotations

import functools

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


def measure(switch: Switch | None = None) -> list[Reading]:
    """Microseconds, or GB/s from 16 MiB on, of a copy and the wait for it."""
    device, other = (torch.ones(_LARGEST, dtype=torch.uint8, device="cuda") for _ in range(2))
    hosts = {memory: torch.ones(_LARGEST, dtype=torch.uint8, pin_memory=memory == "pinned") for memory in _MEMORY}
    readings = []
    for sizes, budget_s in _GROUPS:
        cases = [
            _case(direction, memory, target[:size], source[:size])
            for memory, host in hosts.items()
            for direction, target, source in (("h2d", device, host), ("d2h", host, device))
            for size in sizes
        ]
        cases += [_case("d2d", "device", other[:size], device[:size]) for size in sizes if size in _D2D_SIZES]
        readings += measure_cases(cases, budget_s, switch)
    return readings


def num_calls(num_bytes: int) -> int:
    """Copies of a block."""
    return max(1, min(_MOST_CALLS, _BLOCK_BYTES // num_bytes))


def _case(direction: str, memory: str, target: torch.Tensor, source: torch.Tensor) -> Case:
    num_bytes = source.numel()
    block = time_us(and_wait(functools.partial(target.copy_, source, non_blocking=True)), num_calls(num_bytes))
    times = 2 if direction == "d2d" else 1
    return transfer("copy", {"direction": direction, "memory": memory}, num_bytes, block, times)
