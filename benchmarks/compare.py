"""How long `compare` takes on many runs: 1,000 of 100 steps in under 5 s, 1,000 of 1,000 in under 30 s are promised.

The records are made here, as a run writes them (one rank, phases, micro-batches, FLOPs: about 0.7 kB a step), half with
CC off and half with CC on; the time is that of the whole command, from start to the JSON line, statistics derived anew
from the steps.

    python benchmarks/compare.py                    both sizes
    python benchmarks/compare.py --runs 100         a tenth of the runs

As the last line one JSON object.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests import make_records

PROMISED_S = {100: 5.0, 1000: 30.0}


def main() -> None:
    """Make, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    flags = parser.parse_args()
    facts = {}
    for num_steps, promised in PROMISED_S.items():
        with tempfile.TemporaryDirectory() as root:
            for number in range(flags.runs // 2):
                make_records.write(root, make_records.run_record("off", 2 * number, num_steps=num_steps))
                on = make_records.run_record("on", 2 * number + 1, num_steps=num_steps, step_time_s=0.28)
                make_records.write(root, on)
            size = sum(path.stat().st_size for path in Path(root).glob("*/run.json"))
            begin = time.perf_counter()
            command = [sys.executable, "-m", "cctrain", "compare", root, "--json", "--allow", "steady"]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            seconds = time.perf_counter() - begin
        answer = json.loads(done.stdout.splitlines()[-1])
        assert answer["num_runs"] == flags.runs // 2 * 2
        facts[f"{flags.runs}x{num_steps}"] = {"seconds": seconds, "promised_s": promised, "mebibytes": size / 2**20}
        print(f"{flags.runs} runs of {num_steps} steps, {size / 2**20:.0f} MiB: {seconds:.1f} s", file=sys.stderr)
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
