"""How long a user waits before anything happens: `--help`, and a tiny CPU run up to the start of torchrun.

Run on an otherwise idle machine: `python benchmarks/startup.py`. Medians of five, and as the last line one JSON object.
Promised: --help under 0.5 s, composed and launching under 1.5 s, on 2 cores.
"""

from __future__ import annotations

import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPEATS = 5
COMMAND = [sys.executable, "-m", "cctrain"]


def help_s() -> float:
    """Seconds of `python -m cctrain --help`."""
    begin = time.perf_counter()
    subprocess.run([*COMMAND, "--help"], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def launching_s() -> float:
    """Seconds from the command to the file for torchrun's output, which is made just before torchrun starts."""
    with tempfile.TemporaryDirectory() as run_root:
        begin = time.perf_counter()
        parent = subprocess.Popen(
            [*COMMAND, "recipe=tiny_llama_peft", f"run_root={run_root}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while not list(Path(run_root).glob("*/logs/torchrun.log")):
            if parent.poll() is not None:
                raise SystemExit(f"the run ended with exit code {parent.returncode} before it was launched")
            time.sleep(0.005)
        seconds = time.perf_counter() - begin
        parent.send_signal(signal.SIGINT)
        parent.wait()
    return seconds


def main() -> None:
    """Print the medians."""
    medians = {
        "help_s": round(statistics.median(help_s() for _ in range(REPEATS)), 3),
        "launching_s": round(statistics.median(launching_s() for _ in range(REPEATS)), 3),
    }
    print(json.dumps(medians))


if __name__ == "__main__":
    main()
