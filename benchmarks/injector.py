"""What meeting the driver's calls costs where nothing is paid, and what of it is CUPTI's own.

    python benchmarks/injector.py [--launches-per-step 5380 --step-ms 233]

One process launches in blocks, in turn with the library's callbacks off and on, and with one that returns at once in
their place (empty_callback.c); the difference of the blocks is the cost of a launch, with its 95 % interval over the
rounds. The cost of a wait and of a copy likewise. With the launches and the time of a step it is said as a share of the
step; 0.5 % is promised. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from scipy.stats.mstats import trimmed_mean_ci

from cctrain.emulation.build import build, find_cupti
from cctrain.emulation.injector import INJECTION, attached, check_not_inside, process_environment
from cctrain.errors import PlatformError
from cctrain.tolls.device import can_run

OURS, EMPTY = "ours", "empty"
"""Callbacks."""
_ROUNDS, _CALLS = 200, 500
_SOURCE = Path(__file__).with_name("empty_callback.c")


class Callbacks:
    """Which of them the driver's calls are met with."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(os.environ[INJECTION])
        self._num_met = self._library.cctrain_meet(1)

    def set(self, kind: str | None) -> None:
        """None: with none. Raises RuntimeError where CUPTI refuses."""
        call, flag = (self._library.cctrain_meet_with, kind == EMPTY) if kind else (self._library.cctrain_meet, 0)
        if call(int(flag)) != self._num_met:
            raise RuntimeError(f"CUPTI refused to change the callback of some driver calls, to {kind or 'none'}")


def block_us(call: Callable[[], object]) -> float:
    """Microseconds of one call of `_CALLS`."""
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(_CALLS):
        call()
    torch.cuda.synchronize()
    return (time.perf_counter() - begin) / _CALLS * 1e6


def cost(call: Callable[[], object], callbacks: Callbacks) -> dict[str, float]:
    """Of both kinds the trimmed mean of the differences, the half-width of its interval, and the difference of the
    fastest tenths; and the median of the calls that were let pass."""
    took: dict[str | None, list[float]] = {None: [], OURS: [], EMPTY: []}
    for order in itertools.islice(itertools.cycle(itertools.permutations(took)), _ROUNDS):
        for kind in order:
            callbacks.set(kind)
            took[kind].append(block_us(call))
    callbacks.set(OURS)
    found = {"call_us": statistics.median(took[None])}
    for kind in (OURS, EMPTY):
        differences = [met - passed for met, passed in zip(took[kind], took[None], strict=True)]
        # A tenth at either end is left out: the host's interruptions.
        low, high = map(float, trimmed_mean_ci(differences, limits=(0.1, 0.1)))
        fastest = statistics.quantiles(took[kind], n=10)[0] - statistics.quantiles(took[None], n=10)[0]
        found |= {
            f"{kind}_us": (low + high) / 2,
            f"{kind}_half_width_us": (high - low) / 2,
            f"{kind}_fastest_us": fastest,
        }
    return found


def inside() -> int:
    """This file again, in a process with the library. Returns its exit code."""
    check_not_inside(os.environ, "python benchmarks/injector.py")
    with tempfile.TemporaryDirectory() as folder:
        library = build(find_cupti(), Path(folder), _SOURCE)
        environment = os.environ | process_environment(None, Path(folder), library)
        return subprocess.run([sys.executable, *sys.argv, "--inside"], env=environment, check=False).returncode


def main() -> int:
    """Measure and print. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--launches-per-step", type=int, default=5380, help="of llama8b_peft, 4x256 (run.json)")
    parser.add_argument("--step-ms", type=float, default=233.0, help="of that step, best on this host")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if why := can_run():
        sys.exit(f"this benchmark {why}")
    injector = attached() if flags.inside else None
    try:
        if not injector:
            return inside()
        torch.cuda.init()
        injector.check()
    except PlatformError as error:
        sys.exit(str(error))
    x, small, pinned = torch.zeros(1024, device="cuda"), torch.zeros(16, device="cuda"), torch.zeros(16).pin_memory()
    callbacks = Callbacks()
    found = {
        "launch": cost(lambda: x.add_(1), callbacks),
        "wait": cost(torch.cuda.current_stream().synchronize, callbacks),
        "copy": cost(lambda: small.copy_(pinned, non_blocking=True), callbacks),
    }
    share_per_us = flags.launches_per_step / flags.step_ms / 1e3
    shares = {kind: found["launch"][f"{kind}_us"] * share_per_us for kind in (OURS, EMPTY)}
    for name, each in found.items():
        print(f"{name}, {each['call_us']:.2f} us where it is let pass")
        for kind in (OURS, EMPTY):
            mean, width, fastest = (each[f"{kind}_{key}"] for key in ("us", "half_width_us", "fastest_us"))
            print(f"    {kind:6} {mean:+.3f} +- {width:.3f} us, of the fastest tenths {fastest:+.3f} us")
    for kind, share in shares.items():
        print(f"{kind}: {flags.launches_per_step} launches in a step of {flags.step_ms:g} ms: {share:.2%} of it")
    print(json.dumps({**found, "share_of_step": shares, "gpu": torch.cuda.get_device_name()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
