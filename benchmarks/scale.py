"""What a large run costs its parent: following the samples of all ranks and summing them up.

    python benchmarks/scale.py [--ranks 1024] [--steps 1000]

The samples are synthetic: as many lines as so many ranks write, each with what a real one holds. Nothing trains. The
target is 10 s and 1 GiB for 1,024 ranks x 1,000 steps. `whole` is all that the parent does, of which `end_s` comes
after the last step and the rest is spread over the run; `from_files` is the end of a run whose parent was killed: the
next one reads the files. Each is measured in a process of its own. Prints one JSON object; `seconds` are of a CPU.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from cctrain.finish import finish_record, reduction_of
from cctrain.follow import Follower

_PHASES_S = {
    "data_wait": 0.004023831999802496,
    "other": 0.1250212980003198,
    "forward": 0.670225817000028,
    "backward": 0.930662711999866588,
    "optimizer": 0.26916276500014646,
}


def write_run(run_dir: Path, num_ranks: int, num_steps: int) -> None:
    """A run directory whose ranks have trained, and whose record is still to be summed up."""
    draw = random.Random(0)
    for name in ("samples", "logs"):
        (run_dir / name).mkdir(parents=True)
    identity = {"gpu": ["cpu"], "num_gpus": num_ranks, "versions": {}}
    record = {"run_id": run_dir.name, "mode": "off", "identity": identity, "platform": {}, "notes": []}
    (run_dir / "run.json").write_text(json.dumps({**record, "failure": "still running"}))
    expected = {"warmup": 10, "steps": num_steps - 10, "ranks": num_ranks}
    (run_dir / "running.json").write_text(json.dumps(expected))
    config = {"measure": {"kind": "steady"}, "tolls": None}
    (run_dir / "config.json").write_text(json.dumps(config))
    for rank in range(num_ranks):
        with (run_dir / "samples" / f"rank{rank}.jsonl").open("w") as file:
            start = {"event": "start", "rank": rank, "world_size": num_ranks, "host": f"node{rank // 8}", "pid": 1}
            ready = {"event": "ready", "data_rank": rank, "data_ranks": num_ranks, "clock": "device"}
            file.write(f"{json.dumps(start)}\n{json.dumps(ready)}\n")
            file.writelines(
                _line(rank, step, draw.gauss(0, 0.004), sum(draw.choices(range(200, 1025), k=4)))
                for step in range(1, num_steps + 1)
            )
            file.write('{"event": "end"}\n')


def _line(rank: int, step: int, noise: float, real_tokens: int) -> str:
    late = 1 + noise
    line: dict[str, Any] = {"step": step, "loss": 7 * late}
    if rank == 0:
        line |= {"engine_tokens": 4194304, "engine_tokens_per_s_per_gpu": 2211.48 * late}
    line |= {"padded_tokens": 4096, "real_tokens": real_tokens, "label_tokens": real_tokens - 40, "num_images": 0}
    line |= {"begin_s": 1795480230.5862746 + 1.85 * step, "step_time_s": 1.8517823410000163 * late}
    line |= {"data_wait_s": 0.004023831999802496 * late, "phases_s": {key: t * late for key, t in _PHASES_S.items()}}
    line |= {"micro_batches_s": {}, "model_flops": 2.9e11 * real_tokens, "hardware_flops": 1187940532797440.0}
    return json.dumps(line, separators=(",", ":")) + "\n"


def _measured(part: str, run_dir: Path) -> None:
    """In a process of its own: do one part of the parent's work."""
    begin_s = last_s = time.process_time()
    reduction = None
    if part == "whole":
        follower = Follower(run_dir, 1.0, 1.0, reduction_of(run_dir))
        follower.follow(lambda: 0, lambda ranks: None)
        reduction, last_s = follower.reduction, time.process_time()
        assert reduction
    finish_record(run_dir, None, reduction)
    end_s = time.process_time()
    print(json.dumps({"seconds": end_s - begin_s, "end_s": end_s - last_s, "peak_gib": _peak_gib()}))


def _peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--part", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        _measured(arguments.part[0], Path(arguments.part[1]))
        return
    result = {"ranks": arguments.ranks, "steps": arguments.steps}
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        write_run(run_dir, arguments.ranks, arguments.steps)
        begun = {name: (run_dir / name).read_text() for name in ("run.json", "running.json")}
        for part in ("whole", "from_files"):
            for name, text in begun.items():
                (run_dir / name).write_text(text)
            command = [sys.executable, __file__, "--part", part, str(run_dir)]
            result[part] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            record = json.loads((run_dir / "run.json").read_text())
            assert record["status"] == "complete", record
    print(json.dumps(result))


if __name__ == "__main__":
    main()
