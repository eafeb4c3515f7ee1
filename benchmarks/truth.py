"""Whether recorded tokens/s are true: counted by hand over wall time, by a script that shares no code with the timer.

Runs a recipe with random weights and synthetic samples of one length, so that a step's tokens are known beforehand:
global batch x sequence length. Meanwhile it watches the first rank's log from outside and notes, by its own clock, when
each of AutoModel's own lines "step N | ..." appears. Tokens of the steady steps over the time between the first and the
last of these lines, per GPU, stand beside what run.json says.

    python benchmarks/truth.py recipe=llama8b_peft data.seq_len=1024
    python benchmarks/truth.py recipe=llama8b_peft launch.nproc_per_node=2 train.distributed.tp_size=2
    python benchmarks/truth.py recipe=tiny_llama_peft    # on a CPU

Any further override is passed on. Prints the numbers, and as the last line one JSON object; promised is 1 %.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

_POLL_S = 0.0005
_STEP = re.compile(rb"step (\d+) \| epoch")


def watch(command: list[str], run_root: Path) -> dict[int, float]:
    """Run `command` to its end. Returns when each step's line appeared, by the step's number from 1."""
    seen: dict[int, float] = {}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        log, rest = None, b""
        while process.poll() is None:
            time.sleep(_POLL_S)
            if log is None:
                found = next(run_root.glob("*/logs/rank0.log"), None)
                log = found.open("rb") if found else None
                continue
            block = log.read()
            now = time.time()
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                step = _STEP.search(line)
                if step:
                    seen[int(step[1]) + 1] = now
        if process.returncode:
            raise SystemExit(f"the run failed with exit code {process.returncode}")
    return seen


def compare(record: dict[str, Any], seen: dict[int, float]) -> dict[str, Any]:
    """Recorded tokens/s/GPU of the steady steps beside those counted by hand."""
    identity, summary = record["identity"], record["summary"]
    first, last = summary["steady_state"]["first_step"], record["steps"][-1]["step"]
    tokens = identity["batch"]["global_batch_size"] * identity["sequence"]["seq_len"] * (last - first + 1)
    if first == 1:
        raise SystemExit("the first step's beginning is not in the log: give measure.warmup=1 or more")
    wall_s = seen[last] - seen[first - 1]  # a step runs from the end of the one before
    by_hand = tokens / wall_s / identity["layout"]["world"]
    recorded = summary["tokens_per_s_per_gpu"]["mean"]
    return {
        "recipe": record["recipe"],
        "gpu": identity["gpu"],
        "layout": identity["layout"],
        "batch": identity["batch"],
        "seq_len": identity["sequence"]["seq_len"],
        "num_steps": last - first + 1,
        "step_time_s": summary["step_time_s"]["mean"],
        "tokens_by_hand": tokens,
        "wall_s": wall_s,
        "tokens_per_s_per_gpu_by_hand": by_hand,
        "tokens_per_s_per_gpu_recorded": recorded,
        "recorded_over_by_hand": recorded / by_hand,
    }


def main(overrides: list[str]) -> None:
    """Run, compare, print."""
    if not overrides or {"-h", "--help"} & set(overrides):
        raise SystemExit(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        fixed = ["weights=random", "data=synthetic", f"run_root={folder}"]
        if not any(override.startswith("data.seq_len=") for override in overrides):
            fixed.append("data.seq_len=256")
        seen = watch([sys.executable, "-m", "cctrain", *fixed, *overrides], Path(folder))
        (path,) = Path(folder).glob("*/run.json")
        result = compare(json.loads(path.read_text(encoding="utf-8")), seen)
    for name, value in result.items():
        print(f"{name:32} {value}")
    print(json.dumps({"command": ["benchmarks/truth.py", *overrides], **result}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
