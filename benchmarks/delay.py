"""How much longer than its toll does a collective's delay on the GPU take?

    python benchmarks/delay.py

Graphs of 10, 50 and 150 all-reduces of 1 KiB between the GPUs of this machine (on a single one, of kernels with the
name of one of NCCL's), each behind a pause of 0 to 50 us, in turns: microseconds an exchange over the time without
pauses and the pause. First the pause is the delay kernel of the injection library; then, in processes without the
library, a kernel that counts the GPU's cycles, in a graph of its own for each pause, and the pauses alone in another.
Each has two times: the GPU's, whose graph begins as an exchange ends, on all GPUs at once; and the host's, as the verb
tolls takes it, where a rank that begins later than the others is in the time of the graph. What both kinds of pause
say is the machine's; what the first says of a single GPU is the delay's own. `ticks_ns` are the steps in which the
GPU's timer moves, by which the delay is measured. The last line of stdout is one JSON object, in which each time is
the GPU's and the host's.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing
import torch
import torch.distributed as dist
import triton
import triton.language as tl

from cctrain.emulation.injector import Injector, attached, process_environment
from cctrain.emulation.profile import Profile, load_profile
from cctrain.launcher import NO_MULTICAST
from cctrain.tolls.device import can_run, time_us, warm_up

_PAUSES_US = (0.0, 5.0, 12.5, 25.0, 50.0)
_CYCLES_PER_US = 1980
"""Of an H200 at its highest clock. How long a pause is, is measured: no figure rests on it."""
_CALLS, _ROUNDS, _READS = (10, 50, 150), 40, 4096
_AHEAD_US = 1000
"""How long the GPUs pause before a graph, in which its launch arrives."""

Times = np.typing.NDArray[np.float64]
"""Microseconds an exchange, by the GPU's clock and by the host's."""
PAUSE, BOTH = "the pause alone", "the pause and an exchange"


@triton.jit
def ncclDevKernel_Test(pointer):  # type: ignore[no-untyped-def]  # noqa: N802, D103 - the library knows a collective by such a name
    tl.store(pointer, 1.0)


@triton.jit  # type: ignore[untyped-decorator]
def _read_timer(pointer, count: tl.constexpr):  # type: ignore[no-untyped-def]
    for i in range(count):
        tl.store(pointer + i, tl.extra.cuda.globaltimer())


def captured(work: Callable[[], object], exchange: Callable[[], object], num_calls: int) -> Callable[[], Times]:
    """A block: the time of one `work` of the `num_calls` in a graph, before which an `exchange` lets the GPUs begin
    together."""
    work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        for _ in range(num_calls):
            work()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    by_host = time_us(graph.replay)

    def block() -> Times:
        pause(_AHEAD_US)
        exchange()
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        return np.array([begin.elapsed_time(end) * 1e3, by_host()]) / num_calls

    return block


def pause(pause_us: float) -> None:
    """On the GPU, for about so long."""
    torch.cuda._sleep(int(pause_us * _CYCLES_PER_US))  # noqa: SLF001 - there is no public one


def medians(blocks: Mapping[Any, Callable[[], Times]]) -> dict[Any, Times]:
    """Of blocks in turns, which all ranks begin together."""
    spans: dict[Any, list[Times]] = {key: [] for key in blocks}
    for _ in range(_ROUNDS):
        for key, block in blocks.items():
            if dist.is_initialized():
                dist.barrier()
            block()
            spans[key].append(block())
    return {key: np.median(found, axis=0) for key, found in spans.items()}


def by_the_library(exchange: Callable[[], object], num_calls: int, injector: Injector) -> dict[float, Times]:
    """The pause is a toll: the time of an exchange without it, and of the others what is over, by the toll."""
    block = captured(exchange, exchange, num_calls)
    injector.check()

    def under(profile: Profile) -> Callable[[], Times]:
        def tolled() -> Times:
            torch.cuda.synchronize()
            injector.set_tolls(profile)
            return block()

        return tolled

    found = medians({us: under(profile_of(us)) for us in _PAUSES_US})
    return {us: found[us] - (found[0.0] + us if us else 0) for us in _PAUSES_US}


def by_cycles(exchange: Callable[[], object], num_calls: int) -> dict[float, Times]:
    """The same where the pause is a kernel that counts cycles."""

    def behind(pause_us: float) -> None:
        pause(pause_us)
        exchange()

    blocks = {(PAUSE, us): captured(partial(pause, us), exchange, num_calls) for us in _PAUSES_US}
    blocks |= {(BOTH, us): captured(partial(behind, us), exchange, num_calls) for us in _PAUSES_US}
    found = medians(blocks)
    less = {us: found[BOTH, 0.0] + found[PAUSE, us] - found[PAUSE, 0.0] if us else 0 for us in _PAUSES_US}
    return {us: found[BOTH, us] - less[us] for us in _PAUSES_US}


def profile_of(collective_us: float) -> Profile:
    """Of this toll alone."""
    whole = load_profile("b300")
    tolls = {name: dataclasses.replace(toll, value=None) for name, toll in whole.tolls.items()}
    tolls["collective_us"] = dataclasses.replace(whole.tolls["collective_us"], value=collective_us)
    return dataclasses.replace(whole, tolls=tolls)


def ticks_ns() -> dict[str, float]:
    """The steps of the GPU's timer."""
    reads = torch.zeros(_READS, dtype=torch.int64, device="cuda")
    _read_timer[(1,)](reads, _READS)
    steps = [step for step in reads.diff().tolist() if step > 0]
    return {"least": min(steps), "median": statistics.median(steps), "most": max(steps)}


def measure() -> None:
    """In a rank, with the library or without; the first one prints."""
    rank, num_ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    torch.cuda.set_device(rank)
    number = torch.zeros(512, dtype=torch.bfloat16, device="cuda")
    if num_ranks > 1:
        dist.init_process_group("nccl", device_id=torch.device("cuda", rank))
    warm_up()
    exchange = (lambda: dist.all_reduce(number)) if num_ranks > 1 else (lambda: ncclDevKernel_Test[(1,)](number))
    injector = attached()
    for num_calls in _CALLS:
        found = by_the_library(exchange, num_calls, injector) if injector else by_cycles(exchange, num_calls)
        if rank == 0:
            pauses = {f"{us:g}": times.round(3).tolist() for us, times in found.items()}
            print(json.dumps({"in_a_graph": num_calls, "own_us": pauses.pop("0"), "over_us": pauses}), flush=True)
    torch.cuda.synchronize()
    os._exit(0)  # NCCL would wait a minute for the graphs that hold its collectives


def main() -> None:
    """Start one process a GPU, with the library and then without, and print."""
    if why := can_run():
        sys.exit(f"this benchmark {why}")
    num_gpus = torch.cuda.device_count()
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_gpus}"] if num_gpus > 1 else []
    command = [sys.executable, *start, str(Path(__file__).resolve()), "rank"]
    found: dict[str, object] = {"gpus": num_gpus, "ticks_ns": ticks_ns()}
    for name, library in (("toll", process_environment(None)), ("cycles", {})):
        environment = os.environ | NO_MULTICAST | library
        done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
        found[f"pause_by_{name}"] = made = [json.loads(line) for line in done.stdout.splitlines() if line[:1] == "{"]
        for of in made:
            print(f"{num_gpus} GPUs, {of['in_a_graph']} in a graph, the pause is a {name}: own {of['own_us']} us")
            print(f"    over the pause: {of['over_us']}", flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    measure() if sys.argv[1:] == ["rank"] else main()
