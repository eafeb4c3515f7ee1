"""What the families on a GPU share: whether there is one, a warm-up, and blocks of calls between two waits.

Time is the host's, read where the device stands still: cudaEventElapsedTime is unreliable with CC on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from cctrain.tolls.record import Facts
from cctrain.tolls.sampling import Case

_WARM_UP_S = 0.25
_NEEDED_GIB = 6
_RATE_FROM_BYTES = 16 << 20
"""Transfers from this size on are given as a rate, smaller ones as a time."""


def can_run() -> str | None:
    """None, or why nothing can be measured on a GPU here."""
    if not torch.cuda.is_available():
        return "needs a CUDA GPU, torch sees none"
    free_gib = torch.cuda.mem_get_info()[0] / 2**30
    return None if free_gib >= _NEEDED_GIB else f"needs {_NEEDED_GIB} GiB of GPU memory, {free_gib:.1f} are free"


def warm_up() -> None:
    """Matmuls that bring up the GPU's clocks."""
    matrix, product = (torch.randn(4096, 4096, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    end = time.perf_counter() + _WARM_UP_S
    while time.perf_counter() < end:
        for _ in range(20):
            torch.mm(matrix, matrix, out=product)
        torch.cuda.synchronize()


def time_us(call: Callable[[], Any], num_calls: int = 1, *, with_wait: bool = True) -> Callable[[], float]:
    """A block: microseconds per call, of `num_calls` in a row and, unless the host's time alone is wanted, one wait."""

    def block() -> float:
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(num_calls):
            call()
        if with_wait:
            torch.cuda.synchronize()
        end = time.perf_counter()
        torch.cuda.synchronize()
        return (end - begin) / num_calls * 1e6

    return block


def and_wait(call: Callable[[], Any]) -> Callable[[], None]:
    """The call, waited for."""

    def call_and_wait() -> None:
        call()
        torch.cuda.synchronize()

    return call_and_wait


def transfer(name: str, conditions: Facts, num_bytes: int, block: Callable[[], float], times: int = 1) -> Case:
    """The case of a transfer that takes the block's microseconds: large ones in GB/s, every byte counted `times`."""
    conditions = {**conditions, "bytes": num_bytes}
    if num_bytes < _RATE_FROM_BYTES:
        return Case(name, "us", conditions, block)
    return Case(name, "GB/s", conditions, lambda: times * num_bytes / block() / 1e3)
