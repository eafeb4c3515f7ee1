"""What meeting the driver's calls costs where nothing is paid.

    python -m cctrain emulate -- python benchmarks/injector.py [--launches-per-step 5380 --step-ms 195]

One process launches in blocks, in turn with the library's callbacks on and off; the difference of the blocks is the
cost of a launch, with its 95 % interval over the pairs. The cost of a wait and of a copy likewise. With the launches
and the time of a step it is said as a share of the step; 0.5 % is promised. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import sys
import time
from collections.abc import Callable

import torch
from scipy.stats.mstats import trimmed_mean_ci

from cctrain.emulation.injector import INJECTION, attached
from cctrain.tolls.device import can_run

_PAIRS, _CALLS = 200, 500


def block_us(call: Callable[[], object]) -> float:
    """Microseconds of one call of `_CALLS`."""
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(_CALLS):
        call()
    torch.cuda.synchronize()
    return (time.perf_counter() - begin) / _CALLS * 1e6


def cost(call: Callable[[], object], meet: Callable[[int], int]) -> dict[str, float]:
    """Trimmed mean of the differences, the half-width of its interval, and the median of the calls that were let
    pass."""
    differences, passed = [], []
    for index in range(_PAIRS):
        order = (0, 1) if index % 2 else (1, 0)
        took = {}
        for is_on in order:
            meet(is_on)
            took[is_on] = block_us(call)
        differences.append(took[1] - took[0])
        passed.append(took[0])
    meet(1)
    # A tenth at either end is left out: the host's interruptions.
    low, high = map(float, trimmed_mean_ci(differences, limits=(0.1, 0.1)))
    return {"cost_us": (low + high) / 2, "half_width_us": (high - low) / 2, "call_us": statistics.median(passed)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--launches-per-step", type=int, default=5380, help="of llama8b_peft, 4x256 (run.json)")
    parser.add_argument("--step-ms", type=float, default=195.0)
    flags = parser.parse_args()
    if why := can_run():
        sys.exit(f"this benchmark {why}")
    if not attached():
        sys.exit("start it by python -m cctrain emulate -- python benchmarks/injector.py, which loads the library")
    meet = ctypes.CDLL(os.environ[INJECTION]).cctrain_meet
    x, small, pinned = torch.zeros(1024, device="cuda"), torch.zeros(16, device="cuda"), torch.zeros(16).pin_memory()
    found = {
        "launch": cost(lambda: x.add_(1), meet),
        "wait": cost(torch.cuda.current_stream().synchronize, meet),
        "copy": cost(lambda: small.copy_(pinned, non_blocking=True), meet),
    }
    for name, each in found.items():
        print(f"{name:8}{each['cost_us']:+.3f} +- {each['half_width_us']:.3f} us on {each['call_us']:.2f} us")
    share = found["launch"]["cost_us"] * flags.launches_per_step / flags.step_ms / 1e3
    print(f"{flags.launches_per_step} launches in a step of {flags.step_ms:g} ms: {share:.2%} of it")
    print(json.dumps({**found, "share_of_step": share, "gpu": torch.cuda.get_device_name()}))


if __name__ == "__main__":
    main()
