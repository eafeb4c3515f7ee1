"""What live tracking takes from the host while a run is measured: CPU time of the parent and of each sink's process.

Ranks run nothing of it (tests/unit/test_sinks.py), so that all it can take from them is time of a core they want. Here
samples files grow as those of a run do, with no rank behind them, and the parent looks after its sinks as often as it
does in a run; CPU time is the kernel's count, of a sink with all the processes it has started, from the tenth second
on, when libraries are loaded.

    python benchmarks/tracking.py                                   8 ranks, 4 steps a second, W&B offline and trackio
    python benchmarks/tracking.py --ranks 64 --steps-per-s 1 --seconds 120

As the last line one JSON object: CPU seconds a second (share of one core) and a step.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, TextIO

sys.path.insert(0, str(Path(__file__).parents[1]))
from cctrain import rundir
from cctrain.records import to_json
from cctrain.sinks.tracking import Tracking
from tests import make_records

LOADED_S, POLL_S = 10.0, 0.2
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Feed, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--steps-per-s", type=float, default=4.0)
    parser.add_argument("--seconds", type=float, default=60.0)
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"WANDB_MODE": "offline", "TRACKIO_DIR": f"{folder}/trackio"}
        facts = measured(Path(folder) / "run", flags.ranks, flags.steps_per_s, flags.seconds)
    print(json.dumps({**vars(flags), **facts}))


def measured(run_dir: Path, ranks: int, steps_per_s: float, seconds: float) -> dict[str, object]:
    """CPU time by process once everything is loaded."""
    files = begin(run_dir, ranks)
    told: list[str] = []
    tracking, names = Tracking(run_dir, told.append), ("wandb", "trackio")
    tracking.start(names)
    pids = {name: pid for pid, name in sinks().items()}
    parent_s, step, first, used = 0.0, 0, 0, dict.fromkeys(names, 0.0)
    start = time.monotonic()
    while (now := time.monotonic() - start) < LOADED_S + seconds:
        while step < now * steps_per_s:
            step += 1
            for file in files:
                file.write(json.dumps(row(step, 1 / steps_per_s)) + "\n")
                file.flush()
        before = time.thread_time()
        tracking.relay()
        if now < LOADED_S:
            first, used = step, {name: cpu_s(pids[name]) for name in names}
        else:
            parent_s += time.thread_time() - before
        time.sleep(POLL_S)
    span, count = now - LOADED_S, step - first
    took = {"parent": parent_s} | {name: cpu_s(pids[name]) - used[name] for name in names}
    finish(run_dir)
    before_close = time.monotonic()
    tracking.close()
    return {
        "steps": count,
        "share_of_a_core": {name: cpu / span for name, cpu in took.items()},
        "cpu_s_per_step": {name: cpu / count for name, cpu in took.items()},
        "close_s": time.monotonic() - before_close,
        "told": told,
    }


def begin(run_dir: Path, ranks: int) -> list[TextIO]:
    """A run directory whose ranks have started; their samples files."""
    for name in ("samples", "logs"):
        (run_dir / name).mkdir(parents=True)
    track: dict[str, Any] = {"sinks": [], "project": None, "group": None}
    rundir.write_json(run_dir / "config.json", {"track": track, "measure": {"warmup": 5}, "train": {"model": {}}})
    rundir.write_text(run_dir / "run.json", to_json(make_records.run_record("off", 1, num_gpus=ranks)))
    rundir.write_json(run_dir / "running.json", {})
    files: list[TextIO] = [
        (run_dir / "samples" / f"rank{rank}.jsonl").open("w", encoding="utf-8") for rank in range(ranks)
    ]
    for rank, file in enumerate(files):
        file.write(json.dumps({"event": "start", "rank": rank, "world_size": ranks}) + "\n")
        file.write(json.dumps({"event": "ready", "data_rank": rank, "data_ranks": ranks}) + "\n")
    return files


def row(step: int, seconds: float) -> dict[str, object]:
    """What a rank says of a step: 4 micro-batches of 1 sequence."""
    phases = {name: share * seconds for name, share in make_records.PHASES.items()}
    parts = {name: [phases[name] / 4] * 4 for name in ("forward", "backward")}
    counts = {"padded_tokens": 1024, "real_tokens": 1000, "label_tokens": 900, "num_images": 0}
    times = {"step_time_s": seconds, "begin_s": time.time(), "data_wait_s": 0.001, "phases_s": phases}
    counted = {"model_flops": 3e13, "hardware_flops": 3e13}
    return {"step": step, "loss": 1.5, "micro_batches_s": parts, **counts, **counted, **times}


def finish(run_dir: Path) -> None:
    """The parent has written the record."""
    (run_dir / "running.json").unlink()


def sinks() -> dict[int, str]:
    """The sinks that this process has started, by pid."""
    found = {}
    for pid in descendants(os.getpid()):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if b"cctrain.sinks.child" in words:
            found[pid] = words[words.index(b"cctrain.sinks.child") + 1].decode()
    return found


def descendants(pid: int) -> list[int]:
    """All processes that `pid` has started, and those that they have."""
    own = []
    for thread in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            own += [int(child) for child in thread.read_text(encoding="utf-8").split()]
    return [*own, *(below for child in own for below in descendants(child))]


def cpu_s(pid: int) -> float:
    """CPU time of a process and its descendants so far."""
    ticks = 0
    for each in (pid, *descendants(pid)):
        fields = Path(f"/proc/{each}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks * TICK_S


if __name__ == "__main__":
    main()
