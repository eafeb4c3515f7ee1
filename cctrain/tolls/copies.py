"""Copies, each waited for: with CC on they go through the bounce buffer, sealed by the CPU.

A device-to-device copy never leaves the GPU; its rate counts bytes read and written, as other tools do.
"""

from __future__ import annotations

import functools

import torch

from cctrain.tolls.device import and_wait, can_run, time_us, transfer
from cctrain.tolls.record import Reading
from cctrain.tolls.sampling import Case, measure_cases

__all__ = ["can_run", "measure"]

_BUDGET_S = 3.6
_SIZES = (64, 4 << 10, 64 << 10, 1 << 20, 16 << 20, 64 << 20, 256 << 20, 1 << 30)
_MOST_CALLS, _BLOCK_BYTES = 50, 16 << 20


def measure() -> list[Reading]:
    """Microseconds, or GB/s from 16 MiB on, of a copy and the wait for it."""
    device, other = (torch.ones(_SIZES[-1], dtype=torch.uint8, device="cuda") for _ in range(2))
    cases = []
    for memory in ("pinned", "pageable"):
        host = torch.ones(_SIZES[-1], dtype=torch.uint8, pin_memory=memory == "pinned")
        for direction, target, source in (("h2d", device, host), ("d2h", host, device)):
            cases += [_case(direction, memory, target[:size], source[:size]) for size in _SIZES]
    cases += [_case("d2d", "device", other[:size], device[:size]) for size in (_SIZES[0], _SIZES[3], _SIZES[-1])]
    return measure_cases(cases, _BUDGET_S)


def _case(direction: str, memory: str, target: torch.Tensor, source: torch.Tensor) -> Case:
    num_bytes = source.numel()
    num_calls = max(1, min(_MOST_CALLS, _BLOCK_BYTES // num_bytes))
    block = time_us(and_wait(functools.partial(target.copy_, source, non_blocking=True)), num_calls)
    case = transfer("copy", {"direction": direction, "memory": memory}, num_bytes, block)
    if direction == "d2d" and case.unit == "GB/s":
        return Case(case.name, case.unit, case.conditions, lambda: 2 * case.block())
    return case
