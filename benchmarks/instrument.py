"""What cctrain's own instruments cost a training step on a GPU, and whether their numbers are true.

Background: an instrument that slows the run it measures is useless, so the promise is at most 0.1 % of the step, no
synchronization and no copy inside it, and stamps that agree with the wall clock and with torch.profiler.

One process builds a recipe with random weights and synthetic data and then
- alternates blocks of steps of the bare recipe and of the instrumented one (order ABBA), each between two
  synchronizations read on the host; the cost is the mean of the pairs' log ratios with a t interval;
- times the instruments' host work by itself (marks, token counts) over a step's number of them;
- counts CUDA calls of both kinds of steps with torch.profiler, by thread, and compares the profiler's times of the
  stamp kernels with the stamps;
- compares the sum of the stamped steps of every instrumented block with the host's clock.

    python benchmarks/instrument.py --micro-batch 4 --seq-len 256 --pairs 20 --block 8
    python benchmarks/instrument.py --recipe tiny_llama_peft --micro-batch 2 --seq-len 128 --pairs 40    # on a CPU

One table, and as the last line one JSON object. The counts need a GPU with CC off (torch.profiler).
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from scipy.special import stdtrit

from cctrain.engines import automodel
from cctrain.request.compose import compose_config
from cctrain.request.data_files import prepare_data
from cctrain.request.recipe import build_recipe, located
from cctrain.samples import SampleFile

RANK_OF_ONE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29517"}
COUNTED = ("Launch", "Memcpy", "Memset", "Synchronize", "EventRecord")


class Bench:
    """A recipe that can take instrumented and bare steps in turn."""

    def __init__(self, recipe: str, micro_batch: int, seq_len: int, folder: Path) -> None:
        config = compose_config(
            [
                *(f"recipe={recipe}", "weights=random", "data=synthetic", f"data.seq_len={seq_len}"),
                f"train.step_scheduler.local_batch_size={micro_batch}",
                f"train.step_scheduler.global_batch_size={micro_batch}",
                "measure.steps=100000",
            ],
            build_recipe,
        )
        prepare_data(config.data, folder, is_vlm=False)
        (folder / "checkpoints").mkdir()
        self.recipe, self.observer = automodel.build(located(config.train, folder), SampleFile(folder / "rank0.jsonl"))
        self.recipe.setup()
        self.observer.thread.close()  # the benchmark reads the stamps itself
        self.timed = type(self.recipe)
        for part in self.recipe.model_parts:
            part.train()
        self.recipe.timestamp = time.perf_counter()  # AutoModel's loop sets it
        # A new epoch whenever the data end; the scheduler's own iterator ends with them.
        self.batches = itertools.chain.from_iterable(itertools.repeat(self.recipe.step_scheduler))
        self.observer.begin()

    def steps(self, count: int, *, is_timed: bool) -> float:
        """Take `count` steps between two synchronizations. Returns the host's seconds."""
        object.__setattr__(self.recipe, "__class__", self.timed if is_timed else self.timed.__mro__[2])
        torch.cuda.synchronize()
        begin = time.perf_counter()
        if is_timed:
            self.observer.timer.resume()
        else:
            self.observer.timer.pause()
        for _ in range(count):
            log = self.recipe._run_train_optim_step(next(self.batches), 1.0)  # noqa: SLF001
            self.recipe.log_train_metrics(log)
        torch.cuda.synchronize()
        return time.perf_counter() - begin


def cost(bench: Bench, pairs: int, block: int) -> dict[str, Any]:
    """Instrumented over bare step time minus one, with its interval; and stamps against wall time."""
    logs, bare_s, stamped_s, wall_s = [], [], 0.0, 0.0
    for pair in range(pairs):
        seconds = {}
        for is_timed in (True, False) if pair % 2 else (False, True):
            seconds[is_timed] = bench.steps(block, is_timed=is_timed)
            if is_timed:
                stamped_s += sum(row["step_time_s"] for row in bench.observer.timer.finished())
                wall_s += seconds[True]
        logs.append(math.log(seconds[True] / seconds[False]))
        bare_s.append(seconds[False] / block)
    half = float(stdtrit(pairs - 1, 0.975)) * statistics.stdev(logs) / math.sqrt(pairs)
    mean = statistics.fmean(logs)
    return {
        "bare_step_s": statistics.median(bare_s),
        "num_steps_each": pairs * block,
        "cost": math.expm1(mean),
        "cost_ci95": [math.expm1(mean - half), math.expm1(mean + half)],
        "stamps_over_wall": stamped_s / wall_s,
    }


def host_work(bench: Bench, repeats: int = 2000) -> dict[str, float]:
    """Microseconds of the host for one mark and for counting one step's tokens; of the device for one stamp."""
    clock, batch = bench.observer.timer._clock, next(bench.batches)  # noqa: SLF001
    torch.cuda.synchronize()
    begin = time.perf_counter()
    handles = [clock.mark() for _ in range(repeats)]
    mark_us = (time.perf_counter() - begin) / repeats * 1e6
    torch.cuda.synchronize()
    stamps = [stamp for stamp in clock.read(handles) if stamp is not None]
    begin = time.perf_counter()
    for _ in range(repeats):
        automodel.count_tokens(batch)
    return {
        "mark_us": mark_us,
        "count_tokens_us": (time.perf_counter() - begin) / repeats * 1e6,
        "back_to_back_stamps_us": statistics.median(b - a for a, b in itertools.pairwise(stamps)) * 1e6,
    }


def profiled(bench: Bench, steps: int = 1) -> dict[str, Any]:
    """CUDA calls a step by kind, bare and instrumented, in this thread; and stamps against the profiler's timeline."""
    counts, result = {}, {}
    for is_timed in (False, True):
        bench.steps(1, is_timed=is_timed)
        bench.observer.timer.finished()
        activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as profile:
            bench.steps(steps, is_timed=is_timed)
        kinds: Counter[str] = Counter()
        for event in profile.events():
            kinds.update(kind for kind in COUNTED if kind in event.name and event.name.startswith("cu"))
        counts[is_timed] = kinds
        if is_timed:
            rows = bench.observer.timer.finished()
            starts = sorted(event.time_range.start for event in profile.events() if event.name == "_stamp")
            starts = sorted(set(starts))
            result["stamps_over_profiler"] = (
                sum(row["step_time_s"] for row in rows) / ((starts[-1] - starts[0]) * 1e-6) if len(starts) > 1 else None
            )
    for kind in COUNTED:
        result[f"{kind}_per_step_bare"] = counts[False][kind] / steps
        result[f"{kind}_per_step_extra"] = (counts[True][kind] - counts[False][kind]) / steps
    return result


def main() -> None:
    """Measure, print a table, end with one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="llama8b_peft")
    parser.add_argument("--micro-batch", type=int, default=4)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--block", type=int, default=8)
    options = parser.parse_args()
    os.environ.update(RANK_OF_ONE)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options.recipe, options.micro_batch, options.seq_len, Path(folder))
        bench.steps(10, is_timed=True)
        bench.observer.timer.finished()
        is_gpu = torch.cuda.is_available()
        result: dict[str, Any] = {"device": torch.cuda.get_device_name() if is_gpu else "cpu", **vars(options)}
        for part in (host_work(bench), cost(bench, options.pairs, options.block), profiled(bench) if is_gpu else {}):
            print(part, flush=True)
            result |= part
    result["cost_by_count"] = (4 * result["mark_us"] + result["count_tokens_us"]) * 1e-6 / result["bare_step_s"]
    for name, value in result.items():
        print(f"{name:28} {value}")
    print(json.dumps(result), flush=True)
    os._exit(0)  # AutoModel's exit handlers wait for process groups that have no peers here


if __name__ == "__main__":
    main()
