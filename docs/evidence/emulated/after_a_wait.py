"""Is a thread's own code slower after it was busy waiting, as it is where it pays tolls? On any CPU, four minutes.

    python docs/evidence/emulated/after_a_wait.py

First a small transformer's training step, in which every operator of torch is followed by a wait: time outside of the
waits, against steps without, in turns of a random order; `at once` is 20 us an operator in one piece after the step, so
that as much time passes. Then the same of a ring of pointers of some size, which is read after a wait. Means over the
turns, a tenth trimmed at either end, with their 95 % intervals.
"""

import ctypes
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from scipy.stats.mstats import trimmed_mean_ci
from torch.utils._python_dispatch import TorchDispatchMode

WAITS_US = (2, 5, 10, 20, 50, 100)
AT_ONCE_US = 20
SIZES_KB = (16, 128, 512, 1024, 2048)
SECONDS_OF_STEPS, SECONDS_A_SIZE = 150.0, 15.0
STEPS_A_TURN = 3
CACHE_LINE = 64


class Waiting(TorchDispatchMode):
    """Every operator is followed by a wait."""

    def __init__(self, library):
        super().__init__()
        self.library, self.wanted_us = library, 0
        self.num = self.waited_ns = 0

    def wait(self, wanted_us):
        """Keeps the thread, and the interpreter's lock."""
        self.waited_ns += self.library.wait_ns(round(1e3 * wanted_us))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.num += 1
        self.wait(self.wanted_us)
        return result


def built():
    """The C beside this file. PyDLL keeps the interpreter's lock."""
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "after_a_wait.so"
        source = Path(__file__).with_suffix(".c")
        subprocess.run(["gcc", "-O2", "-shared", "-fPIC", source, "-o", made], check=True)
        library = ctypes.PyDLL(str(made))
    library.wait_ns.restype = library.walk_ns.restype = ctypes.c_uint64
    library.wait_ns.argtypes = [ctypes.c_uint64]
    library.walk_ns.argtypes = [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64]
    return library


def in_turns(kinds, measure, seconds):
    """kind -> what `measure(kind)` gave in each turn."""
    took = {kind: [] for kind in kinds}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for kind in random.sample(kinds, len(kinds)):
            took[kind].append(measure(kind))
    return {kind: np.array(values) for kind, values in took.items()}


def show(what, took):
    """Of each kind, by how much more it takes than 0 does."""
    print(f"{what}: {np.median(took[0]):.2f} us without a wait, {len(took[0])} turns")
    for kind, values in took.items():
        if kind != 0:
            low, high = trimmed_mean_ci(values - took[0], limits=(0.1, 0.1))
            named = kind if isinstance(kind, str) else f"after {kind} us"
            print(f"    {named}: {(low + high) / 2:+.2f} +- {(high - low) / 2:.2f} us", flush=True)


def operators(library):
    """Microseconds an operator outside of the waits."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    layers = [torch.nn.TransformerEncoderLayer(64, 4, 128, batch_first=True, dropout=0.0) for _ in range(4)]
    model, x = torch.nn.Sequential(*layers), torch.randn(4, 32, 64)
    optimizer = torch.optim.AdamW(model.parameters())

    def step(at_once_us):
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        waiting.wait(at_once_us)

    def measure(kind):
        is_at_once = isinstance(kind, str)
        waiting.wanted_us = 0 if is_at_once else kind
        at_once_us = AT_ONCE_US * num_a_step if is_at_once else 0
        step(at_once_us)
        waiting.num = waiting.waited_ns = 0
        begin = time.perf_counter_ns()
        for _ in range(STEPS_A_TURN):
            step(at_once_us)
        return (time.perf_counter_ns() - begin - waiting.waited_ns) / waiting.num / 1e3

    with Waiting(library) as waiting:
        for _ in range(10):
            waiting.num = 0
            step(0)
        num_a_step = waiting.num
        return in_turns((0, *WAITS_US, f"after {AT_ONCE_US} us at once"), measure, SECONDS_OF_STEPS)


def ring(size_kb):
    """Lines of the cache in a random order, each with the address of the next, and what keeps them."""
    num = size_kb * 1024 // CACHE_LINE
    lines = np.zeros((num + 1) * CACHE_LINE // 8, dtype=np.uint64)
    first = -(-lines.ctypes.data // CACHE_LINE) * CACHE_LINE
    order = np.random.default_rng(0).permutation(num)
    addresses = (first + order * CACHE_LINE).astype(np.uint64)
    lines[(addresses - lines.ctypes.data).astype(int) // 8] = np.roll(addresses, -1)
    return int(addresses[0]), num, lines


def main():
    """Measure and print."""
    library = built()
    show("an operator of torch", operators(library))
    for size_kb in SIZES_KB:
        place, num, lines = ring(size_kb)
        kinds = (0, *WAITS_US)
        took = in_turns(kinds, lambda us: library.walk_ns(place, num, 1000 * us) / 1e3, SECONDS_A_SIZE)  # noqa: B023
        show(f"{lines.nbytes // 1024} kB of pointers", took)
    return 0


if __name__ == "__main__":
    sys.exit(main())
