"""The rate of large bf16 matrix products back to back and in bursts with pauses, by turns in one process on one GPU.

    python docs/evidence/tolls/matmul_bursts.py GPU_INDEX

A line a series: TFLOP/s, tenth percentile, median, ninetieth; number of blocks; what nvidia-smi reads after it.
"""

import itertools
import subprocess
import sys
import time

import torch

SIZE = 8192
MATRICES = torch.randn(8, 3, SIZE, SIZE, dtype=torch.bfloat16, device="cuda")
PLACES = itertools.cycle(MATRICES)
QUERY = "clocks.sm,power.draw,temperature.gpu,clocks_throttle_reasons.active"


def block(calls: int) -> float:
    """TFLOP/s of `calls` products in a row."""
    left, right, product = next(PLACES)
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(calls):
        torch.mm(left, right, out=product)
    torch.cuda.synchronize()
    return 2 * SIZE**3 * calls / (time.perf_counter() - begin) / 1e12


def series(name: str, budget_s: float, calls: int, pause_s: float) -> None:
    """Blocks of `calls` until `budget_s` is over, a pause and one product before each if there is one."""
    rates, begin = [], time.perf_counter()
    while time.perf_counter() - begin < budget_s:
        if pause_s:
            time.sleep(pause_s)
            torch.mm(*MATRICES[0][:2], out=MATRICES[0][2])
        rates.append(block(calls))
    rates.sort()
    tenths = [round(rates[int(len(rates) * share)]) for share in (0.1, 0.5, 0.9)]
    read = ["nvidia-smi", "-i", sys.argv[1], f"--query-gpu={QUERY}", "--format=csv,noheader"]
    print(name, tenths, len(rates), subprocess.run(read, capture_output=True, text=True, check=True).stdout.strip())


block(10)
for _ in range(3):
    series("continuous, 0.6 s of 10 calls", 0.6, 10, 0)
    series("3 calls after pauses of 30 ms", 0.9, 3, 0.03)
    series("3 calls after pauses of 100 ms", 1.5, 3, 0.1)
    series("continuous, 2 s of 10 calls", 2.0, 10, 0)
