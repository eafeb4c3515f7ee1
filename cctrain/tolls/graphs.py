"""CUDA graphs: many kernels for one command, the way around the launch toll.

The kernel is an in-place add of one element, as in `launch.py`.
- graph_launch_pipelined, graph_launch_wait: a graph of one kernel, launched as there.
- graph_launch_call: the host's time to launch a graph.
- graph_replay: the time per kernel of graphs replayed in a row.
- graph_capture: from the beginning of a capture to a graph that can be launched.
"""

from __future__ import annotations

import time

import torch

from cctrain.tolls.device import and_wait, can_run, time_us
from cctrain.tolls.record import Facts, Reading
from cctrain.tolls.sampling import Case, Switch, measure_cases

__all__ = ["REPLAYS", "can_run", "measure"]

_BUDGET_S = 1.2
_KERNELS = 100
REPLAYS = 50
_CALLS = 10


def measure(switch: Switch | None = None) -> list[Reading]:
    """Microseconds per graph, or per kernel of it."""
    number, stream = torch.zeros(1, device="cuda"), torch.cuda.Stream()
    number.add_(1)

    def capture(num_kernels: int) -> torch.cuda.CUDAGraph:
        # torch.cuda.graph() would collect garbage and empty caches in between.
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(stream):
            graph.capture_begin()
            for _ in range(num_kernels):
                number.add_(1)
            graph.capture_end()
        return graph

    def capture_us() -> float:
        torch.cuda.synchronize()
        begin = time.perf_counter()
        graph = capture(_KERNELS)
        duration_us = (time.perf_counter() - begin) * 1e6
        graph.reset()
        return duration_us

    torch.cuda.synchronize()
    small, large = capture(1), capture(_KERNELS)
    replay = time_us(large.replay, REPLAYS)
    one: Facts = {"kernels": 1}
    many: Facts = {"kernels": _KERNELS}
    cases = [
        Case("graph_launch_pipelined", "us", one, time_us(small.replay, REPLAYS)),
        Case("graph_launch_wait", "us", one, time_us(and_wait(small.replay), REPLAYS)),
        Case("graph_launch_call", "us", one, time_us(small.replay, _CALLS, with_wait=False)),
        Case("graph_launch_call", "us", many, time_us(large.replay, _CALLS, with_wait=False)),
        Case("graph_replay", "us", many, lambda: replay() / _KERNELS),
        Case("graph_capture", "us", many, capture_us),
    ]
    return measure_cases(cases, _BUDGET_S, switch)
