"""How pageable copies differ from process to process and buffer to buffer, beside copies without the GPU.

    python docs/evidence/tolls/host_memory.py > docs/evidence/tolls/host_memory.txt

Four processes, one after another, three buffers of each size in each; a line gives the number of copies, and
microseconds of the fastest, of the tenth, twenty-fifth and fiftieth percentile, and of the slowest.
"""

import subprocess
import sys
import time

import torch


def spread(copy, duration_s: float) -> str:
    """Of copies for so long."""
    times, end = [], time.perf_counter() + duration_s
    while time.perf_counter() < end:
        begin = time.perf_counter()
        copy()
        times.append((time.perf_counter() - begin) * 1e6)
    times.sort()
    count = len(times)
    return f"{count:5} " + " ".join(f"{times[i]:8.0f}" for i in (0, count // 10, count // 4, count // 2, -1))


def measure(process: str) -> None:
    """One process's lines."""
    whole = torch.ones(256 << 20, dtype=torch.uint8, device="cuda")
    for mib in (16, 256):
        device = whole[: mib << 20]
        for buffer in range(3):
            host, other = (torch.ones(mib << 20, dtype=torch.uint8) for _ in range(2))
            found = {
                "h2d": spread(lambda h=host, d=device: (d.copy_(h), torch.cuda.synchronize()), 0.3),
                "d2h": spread(lambda h=host, d=device: (h.copy_(d), torch.cuda.synchronize()), 0.3),
                "host": spread(lambda h=host, o=other: o.copy_(h), 0.15),
            }
            for what, times in found.items():
                print(f"process {process}, {mib:3} MiB, buffer {buffer}, {what:4} {times}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:]:
        measure(sys.argv[1])
    else:
        for number in range(4):
            subprocess.run([sys.executable, __file__, str(number)], check=True)
