"""Collectives between the GPUs of this machine, through NCCL: launched one by one, and captured in a CUDA graph.

Every rank runs the same calls; the readings are rank 0's. `bytes` is the larger side of the operation, and a rate is
these bytes over the time. NVLink multicast stays off (`launcher.py` sees to it).
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from cctrain.tolls import device
from cctrain.tolls.record import Facts, Reading
from cctrain.tolls.sampling import Case, Switch, measure_cases

_BUDGET_S = 9.0
"""Two ranks' small exchanges scatter: with a third of it, by as much as the bar of benchmarks/fidelity.py."""
_SIZES = (1 << 10, 64 << 10, 1 << 20, 16 << 20, 256 << 20, 1 << 30)
_MOST_CALLS, _BLOCK_BYTES = 50, 128 << 20


def can_run() -> str | None:
    """None, or why there is nothing to exchange with."""
    why = device.can_run()
    if not why and int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return f"needs 2 GPUs, torch sees {torch.cuda.device_count()}"
    return why


def measure(switch: Switch | None = None) -> list[Reading]:
    """Microseconds per collective, or GB/s from 16 MiB on."""
    dist.init_process_group("nccl", device_id=torch.device("cuda", torch.cuda.current_device()))
    whole = torch.zeros(_SIZES[-1] // 2, dtype=torch.bfloat16, device="cuda")
    part = torch.zeros_like(whole)
    cases = [case for num_bytes in _SIZES for case in _cases(whole, part, num_bytes)]
    rank, num_ranks = dist.get_rank(), dist.get_world_size()
    readings = measure_cases(cases, _BUDGET_S, switch, agree=_as_rank_0, rank=rank, num_ranks=num_ranks)
    dist.barrier()  # a rank that left now would break the others' last calls
    torch.cuda.synchronize()
    return readings


def num_calls(num_bytes: int) -> int:
    """Collectives of a block."""
    return max(2, min(_MOST_CALLS, _BLOCK_BYTES // num_bytes))


def _cases(whole: torch.Tensor, part: torch.Tensor, num_bytes: int) -> list[Case]:
    world = dist.get_world_size()
    num_elements = num_bytes // 2 // world
    whole, part = whole[: num_elements * world], part[:num_elements]
    all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # since and before torch 2.13
    reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
    calls: dict[str, Callable[[], Any]] = {
        "all_reduce": functools.partial(dist.all_reduce, whole),
        "all_gather": functools.partial(all_gather, whole, part),
        "reduce_scatter": functools.partial(reduce_scatter, part, whole),
    }
    calls_of_block = num_calls(num_bytes)
    cases = []
    for name, call in calls.items():
        facts: Facts = {"ranks": world}
        replay = device.time_us(_captured(call, calls_of_block).replay)
        cases += [
            device.transfer(name, {**facts, "launch": "eager"}, num_bytes, device.time_us(call, calls_of_block)),
            device.transfer(name, {**facts, "launch": "graph"}, num_bytes, _per_call(replay, calls_of_block)),
        ]
    return cases


def _captured(call: Callable[[], Any], num_calls: int) -> torch.cuda.CUDAGraph:
    call()  # NCCL connects the ranks at the first call, which cannot be captured
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    # NCCL's watchdog is another thread: it would break a capture that forbids every thread's calls.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        for _ in range(num_calls):
            call()
    return graph


def _per_call(block: Callable[[], float], num_calls: int) -> Callable[[], float]:
    return lambda: block() / num_calls


def _as_rank_0(is_over: bool) -> bool:
    flag = torch.tensor([is_over], dtype=torch.int32, device="cuda")
    dist.broadcast(flag, 0)
    return bool(flag.item())
