"""What tests/gpu/test_emulation.py runs in a process of its own, which the injection library meets from its first call
on: `python injected.py CASE`. Prints a line of JSON."""

import json
import sys
import time

import torch
import triton
import triton.language as tl

from cctrain.emulation.injector import attached, counted
from cctrain.emulation.injector import tolls as context_of
from cctrain.emulation.profile import TOLLS, Profile, Toll

injector = attached()
assert injector is not None
device = torch.device("cuda")
x = torch.zeros(1024, device=device)
torch.cuda.synchronize()
injector.check()


def profile(**values):
    return Profile("test", {name: Toll(values.get(name), None, "test") for name in TOLLS})


def crossed(work):
    before = injector.read()
    work()
    return counted(tuple(now - then for now, then in zip(injector.read(), before, strict=True)))


def timed(work, **values):
    """Seconds of `work` under tolls, and what it crossed."""
    work()
    torch.cuda.synchronize()
    injector.set_tolls(profile(**values) if values else None)
    begin = time.perf_counter()
    counts = crossed(work)
    seconds = time.perf_counter() - begin
    injector.set_tolls(None)
    torch.cuda.synchronize()
    return seconds, counts


def launches():
    for _ in range(1000):
        x.add_(1)


def counts():
    pinned, pageable = torch.zeros(1 << 20, dtype=torch.uint8).pin_memory(), torch.zeros(1 << 20, dtype=torch.uint8)
    target, other = (torch.zeros(1 << 20, dtype=torch.uint8, device=device) for _ in range(2))

    def work():
        for _ in range(7):
            x.add_(1)
        target.copy_(pinned, non_blocking=True)
        target.copy_(pageable)
        pinned.copy_(target, non_blocking=True)
        pageable.copy_(target)
        target.copy_(other)
        torch.cuda.synchronize()

    return crossed(work)


def tolls():
    small, pinned = torch.zeros(16, device=device), torch.zeros(16).pin_memory()

    def waits():
        for _ in range(100):
            torch.cuda.current_stream().synchronize()

    def copies():
        for _ in range(100):
            small.copy_(pinned, non_blocking=True)

    def python():
        for _ in range(20):
            sum(range(50_000))
            x.add_(1)

    def allocations():
        for _ in range(10):
            torch.empty(64 << 20, dtype=torch.uint8, device=device)
            torch.cuda.empty_cache()

    found = {}
    for name, work, values in (
        ("launch", launches, {"launch_us": 50.0}),
        ("wait", waits, {"wait_us": 500.0}),
        ("copy", copies, {"copy_h2d_pinned_us": ((0, 100.0), (64, 300.0), (128, 300.0))}),
        ("alloc", allocations, {"alloc_device_us": 500.0}),
        ("host", python, {"host_ratio": 2.0}),
    ):
        plain, _ = timed(work)
        tolled, crossings = timed(work, **values)
        found[name] = {"plain_s": plain, "tolled_s": tolled, **crossings}
    return found


def blocking():
    big = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
    small, pinned = torch.zeros(16, device=device), torch.zeros(16).pin_memory()

    def issue():
        torch.cuda.synchronize()
        for _ in range(10):
            big @ big
        begin = time.perf_counter()
        pinned.copy_(small, non_blocking=True)
        return time.perf_counter() - begin

    issue()
    free = issue()
    injector.set_tolls(profile(d2h_pinned_blocks=True))
    return {"free_s": free, "blocked_s": issue()}


def graph():
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        launches()
    torch.cuda.synchronize()
    captured = torch.cuda.CUDAGraph()
    injector.set_tolls(profile(launch_us=1000.0, wait_us=1000.0, graph_launch_us=2000.0))
    before = injector.read()
    with torch.cuda.graph(captured):
        launches()
    at_capture = counted(tuple(now - then for now, then in zip(injector.read(), before, strict=True)))
    replay_s, at_replay = timed(captured.replay, graph_launch_us=2000.0)
    return {"capture": at_capture, "replay_s": replay_s, "replay": at_replay}


def collective():
    """A kernel with the name of one of NCCL's, eager and in a graph that is replayed under changing tolls."""

    def seconds(work):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        counts = crossed(work)
        torch.cuda.synchronize()
        return {"s": time.perf_counter() - begin, "collectives": counts["collectives"], "launches": counts["launches"]}

    def work():
        for _ in range(10):
            ncclDevKernel_Test[(1,)](x)

    work()
    found = {"eager_off": seconds(work)}
    injector.set_tolls(profile(collective_us=2000.0))
    found["eager_on"] = seconds(work)
    injector.set_tolls(None)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        work()
    for name, tolled in (("graph_off", None), ("graph_on", profile(collective_us=2000.0)), ("graph_off_again", None)):
        injector.set_tolls(tolled)
        found[name] = seconds(captured.replay)
    return found


@triton.jit
def ncclDevKernel_Test(pointer):  # noqa: N802
    tl.store(pointer, 1.0)


def switched():
    """The context manager for programs of others."""
    before = injector.read()
    with context_of(profile(launch_us=100.0)):
        launches()
    inside = counted(tuple(now - then for now, then in zip(injector.read(), before, strict=True)))
    return {"inside": inside, "after": crossed(launches)}


CASES = {each.__name__: each for each in (counts, tolls, blocking, graph, collective, switched)}
print(json.dumps(CASES[sys.argv[1]]()))
