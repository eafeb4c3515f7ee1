"""How long a user waits before anything happens: `--help`, `doctor`, and a tiny CPU run up to the start of torchrun.

Run on an otherwise idle machine: `python benchmarks/startup.py`. Medians of five, and as the last line one JSON object.
Promised: --help under 0.5 s, doctor under 3 s, composed and launching under 1.5 s, on 2 cores.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPEATS = 5
COMMAND = [sys.executable, "-m", "cctrain"]


def answer_s(argument: str) -> float:
    """Seconds of `python -m cctrain ARGUMENT` to its end."""
    begin = time.perf_counter()
    subprocess.run([*COMMAND, argument], check=True, stdout=subprocess.DEVNULL)
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
        parent.terminate()  # heeded like a Ctrl-C, which a script in the background would not pass on
        parent.wait()
    return seconds


def main() -> None:
    """Print the medians."""
    medians = {
        "help_s": round(statistics.median(answer_s("--help") for _ in range(REPEATS)), 3),
        "doctor_s": round(statistics.median(answer_s("doctor") for _ in range(REPEATS)), 3),
        "launching_s": round(statistics.median(launching_s() for _ in range(REPEATS)), 3),
    }
    print(json.dumps(medians))


if __name__ == "__main__":
    main()
