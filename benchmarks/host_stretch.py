"""Does the emulation stretch the host's own code by its ratio, and only that?

    python -m cctrain emulate -- python benchmarks/host_stretch.py

Between two launches a thread runs Python for a while, or sleeps, in blocks with a `host_ratio` and without, in turns,
short ones, as hosts become slower and faster within seconds: the mean over the rounds of what a turn takes under it
over what it takes without, in logarithms, a tenth trimmed at either end, with its 95 % interval. What the thread
worked itself is to take the ratio's times as long, what it slept as long as before. How much of a launch is its own is
not known: none of it (`least`), up to all (`most`). One line of stdout is a JSON object; the exit code is 1 where a
ratio is more than 5 % below the one or above the other.
"""

from __future__ import annotations

import itertools
import json
import math
import statistics
import sys
import time
from collections.abc import Callable

import torch
from scipy.stats.mstats import trimmed_mean_ci

from cctrain.emulation.injector import Injector, attached
from cctrain.emulation.profile import TOLLS, Profile, Toll
from cctrain.tolls.device import can_run

BAR = 0.05
_RATIOS = (1.1, 1.5)
_SPANS_US = (20.0, 200.0, 2_000.0, 20_000.0)
_BLOCK_US, _SECONDS = 6_000.0, 8.0
"""Of a block, at least; of all rounds of one kind of work."""
_FEWEST_CALLS = 2


def turns_of(span_us: float) -> Callable[[], None]:
    """Python for about that long."""
    num, took_us = 1000, 0.0
    while took_us < 1000:
        num *= 2
        begin = time.perf_counter()
        _count(num)
        took_us = (time.perf_counter() - begin) * 1e6
    scaled = round(num * span_us / took_us)
    return lambda: _count(scaled)


def _count(num: int) -> None:
    total = 0
    for number in range(num):
        total += number & 7


def block_us(between: Callable[[], None], num: int, x: torch.Tensor) -> float:
    """Microseconds of a launch and what lies between it and the next."""
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(num):
        between()
        x.add_(1)
    took_us = (time.perf_counter() - begin) / num * 1e6
    torch.cuda.synchronize()
    return took_us


def profile(ratio: float) -> Profile:
    """Of nothing but a slower host."""
    return Profile("host", {name: Toll(ratio if name == "host_ratio" else None, None, "this file") for name in TOLLS})


def measured(injector: Injector, between: Callable[[], None], num: int, x: torch.Tensor) -> dict[float, list[float]]:
    """Microseconds of a turn in each round, without a ratio (1) and under each."""
    took: dict[float, list[float]] = {ratio: [] for ratio in (1.0, *_RATIOS)}
    profiles = {ratio: profile(ratio) if ratio > 1 else None for ratio in took}
    end = time.monotonic() + _SECONDS
    for order in itertools.cycle(itertools.permutations(took)):
        for ratio in order:
            injector.set_tolls(profiles[ratio])
            took[ratio].append(block_us(between, num, x))
        if time.monotonic() > end:
            break
    injector.set_tolls(None)
    return took


def times_as_long(under: list[float], without: list[float]) -> tuple[float, float, float]:
    """Of the rounds' pairs: the mean, and the ends of its interval."""
    logs = [math.log(one / other) for one, other in zip(under, without, strict=True)]
    low, high = map(float, trimmed_mean_ci(logs, limits=(0.1, 0.1)))
    return math.exp((low + high) / 2), math.exp(low), math.exp(high)


def main() -> int:
    """Measure and print. Returns the exit code."""
    if why := can_run():
        sys.exit(f"this benchmark {why}")
    injector = attached()
    if injector is None:
        sys.exit("nothing is injected here: python -m cctrain emulate -- python benchmarks/host_stretch.py")
    x = torch.zeros(1024, device="cuda")
    torch.cuda.synchronize()
    injector.check()
    launch_us = statistics.median(measured(injector, lambda: None, 500, x)[1.0])
    works = [(f"Python, {span_us:,.0f} us", turns_of(span_us), span_us, False) for span_us in _SPANS_US]
    sleeps = [("asleep, 2,000 us", lambda: time.sleep(0.002), 2_000.0, True)]
    rows, is_kept = [], True
    for what, between, span_us, is_asleep in (*works, *sleeps):
        took = measured(injector, between, max(_FEWEST_CALLS, round(_BLOCK_US / span_us)), x)
        plain_us = statistics.median(took[1.0])
        for ratio in _RATIOS:
            least = 1.0 if is_asleep else 1 + (ratio - 1) * (plain_us - launch_us) / plain_us
            most = 1.0 if is_asleep else ratio
            got, low, high = times_as_long(took[ratio], took[1.0])
            is_kept &= least * (1 - BAR) <= got <= most * (1 + BAR)
            row = {"what": what, "plain_us": plain_us, "ratio": ratio, "least": least, "most": most, "got": got}
            rows.append(row | {"ci95": [low, high], "num_rounds": len(took[ratio])})
            print(
                f"{what}, host_ratio {ratio}: {got:.3f} ({low:.3f}-{high:.3f}) times as long,"
                f" {least:.3f} to {most:.3f} expected"
            )

    print(json.dumps({"rows": rows, "launch_us": launch_us, "gpu": torch.cuda.get_device_name()}))
    return 0 if is_kept else 1


if __name__ == "__main__":
    sys.exit(main())
