"""Does an operation take longer by itself when the program pauses before it?

    python benchmarks/pacing.py

Under tolls a program's calls come farther apart than without, and the driver, the processor and PCIe have time to fall
asleep. Here the pause is a spin of the program's own, no library is injected, and the pause is not in the time shown:
what grows with it is the machine's, and no mistake of the emulation. Microseconds, tenth percentile of the calls. The
last line of stdout is one JSON object.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import torch

from cctrain.tolls.device import and_wait, can_run

_PAUSES_US = (0, 20, 40, 100, 400, 2000)
_CALLS = 400


def timed(call: Callable[[], object], pause_us: float) -> float:
    """Tenth percentile of the microseconds that `call` takes `pause_us` after the one before."""
    spans = []
    torch.cuda.synchronize()
    for _ in range(_CALLS):
        end = time.perf_counter() + pause_us / 1e6
        while time.perf_counter() < end:
            pass
        begin = time.perf_counter()
        call()
        spans.append((time.perf_counter() - begin) * 1e6)
    torch.cuda.synchronize()
    return sorted(spans)[_CALLS // 10]


def main() -> None:
    """Measure and print."""
    if why := can_run():
        sys.exit(f"this benchmark {why}")
    x, small = torch.zeros(1, device="cuda"), torch.zeros(1 << 20, dtype=torch.uint8, device="cuda")
    pinned = torch.zeros(1 << 20, dtype=torch.uint8).pin_memory()
    stream, graphs = torch.cuda.Stream(), {}
    for num_kernels in (1, 100):
        graph = graphs[num_kernels] = torch.cuda.CUDAGraph()
        x.add_(1)
        with torch.cuda.graph(graph, stream=stream):
            for _ in range(num_kernels):
                x.add_(1)

    calls = {
        "launch, call": lambda: x.add_(1),
        "launch + wait": and_wait(lambda: x.add_(1)),
        "graph of 1, call": graphs[1].replay,
        "graph of 100, call": graphs[100].replay,
        "h2d pinned 64 B + wait": and_wait(lambda: small[:64].copy_(pinned[:64], non_blocking=True)),
        "h2d pinned 64 KiB + wait": and_wait(lambda: small[: 64 << 10].copy_(pinned[: 64 << 10], non_blocking=True)),
        "d2h pinned 64 KiB + wait": and_wait(lambda: pinned[: 64 << 10].copy_(small[: 64 << 10], non_blocking=True)),
        "h2d pinned 1 MiB + wait": and_wait(lambda: small.copy_(pinned, non_blocking=True)),
    }
    print(f"{'pause, us':28}" + "".join(f"{pause:>10}" for pause in _PAUSES_US))
    found = {}
    for name, call in calls.items():
        found[name] = [timed(call, pause) for pause in _PAUSES_US]
        print(f"{name:28}" + "".join(f"{value:10.2f}" for value in found[name]))
    print(json.dumps({"pauses_us": _PAUSES_US, **found, "gpu": torch.cuda.get_device_name()}))


if __name__ == "__main__":
    main()
