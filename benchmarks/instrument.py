"""What cctrain's instruments cost a training step, whether their numbers are true, and AutoModel's own beside them.

Background: an instrument that slows the run it measures is useless, so the promise is at most 0.1 % of the step on a
GPU (1 % of a tiny one on CPU), no synchronization and no copy inside it, and stamps that agree with the wall clock
(0.1 %) and with torch.profiler (1 %).

One process builds a recipe with random weights and synthetic data and then
- takes blocks of steps in turn with no instrument, with cctrain's (the thread that reads the stamps and writes them to
  a file included), and with AutoModel's Timers (at the places where its benchmark recipe has them), each block between
  two synchronizations read on the host; an instrument's cost is the mean of the rounds' log ratios to the bare block,
  with a t interval;
- times cctrain's host work by itself (marks, token counts, the thread's readings) over a step's number of them;
- counts CUDA calls of bare and instrumented steps with torch.profiler, those of the training thread and of the reading
  one apart, and compares the profiler's times of the stamp kernels with the stamps;
- compares what each instrument says of its own steps with tokens over wall time.

    python benchmarks/instrument.py --micro-batch 4 --seq-len 256 --rounds 20 --block 8
    python benchmarks/instrument.py --recipe tiny_llama_peft --micro-batch 2 --seq-len 128 --rounds 40    # on a CPU
    python benchmarks/instrument.py --others lightning hf profiler      others' instruments too, one block a round each
    traceml run benchmarks/instrument.py --args --others traceml        likewise, the only way that one runs

Two tables, and as the last line one JSON object. The counts need a GPU with CC off (torch.profiler).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import instruments
import torch
from rich.console import Console
from rich.table import Table

from cctrain import ratios
from cctrain.engines import automodel
from cctrain.errors import RequestError
from cctrain.metrics import count_tokens
from cctrain.request.compose import compose_config
from cctrain.request.data_files import prepare_data
from cctrain.request.recipe import located
from cctrain.samples import SampleFile, SampleThread

RANK_OF_ONE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29517"}
OURS, TIMERS = "cctrain's stamps", "AutoModel's Timers"
COUNTED = ("Launch", "Memcpy", "Memset", "Synchronize", "EventRecord")


class WithTimers:
    """AutoModel's recipe with its own Timers around what its benchmark recipe puts them around."""

    timers: Any

    def _run_train_optim_step(self, batches: Any, max_grad_norm: float | None = None) -> Any:
        with self.timers("iteration", log_level=1):
            log = super()._run_train_optim_step(batches, max_grad_norm)  # type: ignore[misc]
            self.timers("optimizer", log_level=2).stop()
        return log

    def _forward_backward_step(self, idx: int, batch: Any, *, num_batches: int, **kwargs: Any) -> Any:
        with self.timers(f"forward_backward_{idx}", log_level=2):
            result = super()._forward_backward_step(idx, batch, num_batches=num_batches, **kwargs)  # type: ignore[misc]
        if idx == num_batches - 1:
            self.timers("optimizer", log_level=2).start()
        return result


class Bench:
    """A recipe whose steps can be taken bare or under one of the instruments."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        config = compose_config(
            [
                *(f"recipe={options.recipe}", "weights=random", "data=synthetic", f"data.seq_len={options.seq_len}"),
                f"train.step_scheduler.local_batch_size={options.micro_batch}",
                f"train.step_scheduler.global_batch_size={options.micro_batch * options.accumulate}",
                "measure.steps=100000",
                *options.override,
            ],
        )
        prepare_data(config.data, folder, is_vlm=False)
        (folder / "checkpoints").mkdir()
        (folder / "samples").mkdir()
        self.file = SampleFile(folder / "samples" / "rank0.jsonl")
        self.recipe, self.observer = automodel.build(located(config.train, folder), self.file)
        from nemo_automodel.components.training.timers import Timers

        self.recipe.setup()
        self.observer.thread.close()  # each block of ours has its own
        self.rows: list[dict[str, Any]] = []
        """What the thread has read and nobody has taken."""
        timed = type(self.recipe)
        bare = timed.__mro__[2]
        self.timers = Timers(log_level=2, log_option="minmax")
        self.kinds = {"bare": bare, OURS: timed, TIMERS: type("Timed", (WithTimers, bare), {"timers": self.timers})}
        names = [instruments.SHORT[name] for name in options.others]
        self.others = {name: instruments.ALL[name]() for name in names}
        self.kinds |= dict.fromkeys(names, bare)
        self.per_step = (options.micro_batch * options.accumulate * options.seq_len, options.micro_batch)
        for part in self.recipe.model_parts:
            part.train()
        # A new epoch whenever the data end; the scheduler's own iterator ends with them.
        self.batches = itertools.chain.from_iterable(itertools.repeat(self.recipe.step_scheduler))
        self.observer.begin()
        self.says: dict[str, list[float]] = {name: [] for name in ("AutoModel's tps", *self.kinds)}
        """Tokens/s of single steps as each instrument has them; of blocks for the wall clock, under `bare`."""

    def finished(self) -> list[dict[str, Any]]:
        """The steps of the observer that are over, also kept in `rows`."""
        rows = self.observer.finished()
        self.rows += rows
        return rows

    def take_rows(self) -> list[dict[str, Any]]:
        """The rows since the last call."""
        rows, self.rows = self.rows, []
        return rows

    def steps(self, count: int, kind: str) -> float:
        """Take `count` steps between two synchronizations. Returns the host's seconds."""
        object.__setattr__(self.recipe, "__class__", self.kinds[kind])
        if kind == OURS:
            self.observer.thread = SampleThread(self.finished, self.file, lambda: None)
        other = self.others.get(kind)
        torch.cuda.synchronize()
        if other:
            other.start(*self.per_step)
        begin = self.recipe.timestamp = time.perf_counter()  # AutoModel's loop sets the latter, before its first step
        (self.observer.timer.resume if kind == OURS else self.observer.timer.pause)()
        for number in range(count):
            with other.around(self.recipe.model_parts[0]) if other else nullcontext():
                log = self.recipe._run_train_optim_step(next(self.batches), 1.0)  # noqa: SLF001
            if other:
                other.step_end()
            if number < count - 1:  # what follows the last step's stamp is the next step's
                self.recipe.log_train_metrics(log)
            if kind == OURS:
                self.says["AutoModel's tps"].append(log.metrics["tps_per_gpu"])
        torch.cuda.synchronize()
        seconds = time.perf_counter() - begin
        if other:
            self.says[kind] += other.stop()
        if kind == OURS:
            self.observer.thread.close()
        return seconds


def cost(bench: Bench, options: argparse.Namespace) -> dict[str, Any]:
    """Each instrument's step time over the bare one's minus one, with its interval; and stamps against wall time."""
    tokens = options.micro_batch * options.accumulate * options.seq_len
    wall_s: dict[str, list[float]] = {kind: [] for kind in bench.kinds}
    stamped_s, orders = 0.0, random.Random(0)
    bench.says = {name: [] for name in bench.says}
    for _ in range(options.rounds):
        for kind in orders.sample(list(bench.kinds), len(bench.kinds)):
            wall_s[kind].append(bench.steps(options.block, kind))
            if kind == OURS:
                times = [row["step_time_s"] for row in bench.take_rows()]
                stamped_s += sum(times)
                bench.says[OURS] += [tokens / seconds for seconds in times]
            elif kind == TIMERS:
                iteration_s = bench.timers("iteration").elapsed()
                bench.says[TIMERS].append(tokens * options.block / iteration_s)
    bench.says["bare"] = [tokens * options.block / seconds for seconds in wall_s["bare"]]
    result: dict[str, Any] = {
        "bare_step_s": statistics.median(wall_s["bare"]) / options.block,
        "num_steps_each": options.rounds * options.block,
        "stamps_over_wall": stamped_s / sum(wall_s[OURS]),
    }
    for kind, other in bench.others.items():
        bench.says[kind] += other.at_the_end()
    for kind, key in costs_of(bench.others).items():
        both = zip(wall_s[kind], wall_s["bare"], strict=True)
        ratio, ci95 = ratios.geometric_mean([one / bare for one, bare in both])
        result |= {key: ratio - 1, f"{key}_ci95": ci95 and [end - 1 for end in ci95]}
    by_hand = tokens * options.rounds * options.block
    true = {"AutoModel's tps": by_hand / sum(wall_s[OURS]), "bare": by_hand / sum(wall_s["bare"])}
    true |= {kind: by_hand / sum(wall_s[kind]) for kind in (OURS, TIMERS, *bench.others)}
    result["says"] = {
        name: {
            "median_tokens_per_s": statistics.median(values),
            "harmonic_mean_tokens_per_s": statistics.harmonic_mean(values),
            "wall_tokens_per_s": true[name],
        }
        for name, values in bench.says.items()
        if values
    }
    return result


def costs_of(others: Iterable[str]) -> dict[str, str]:
    """The key under which each instrument's cost stands."""
    return {OURS: "cost", TIMERS: "timers_cost", **{name: f"{name} cost" for name in others}}


def host_work(bench: Bench, repeats: int = 2000) -> dict[str, float]:
    """Microseconds of the host for one mark and for counting one step's tokens; of the thread for reading 64 stamps,
    twice a second, and for counting one step's FLOPs and writing it; of the device for one stamp."""
    clock, batch = bench.observer.timer._clock, next(bench.batches)  # noqa: SLF001
    bench.steps(8, OURS)
    begin = time.perf_counter()
    for row in bench.take_rows():
        bench.file.write(row)
    write_us = (time.perf_counter() - begin) / 8 * 1e6
    torch.cuda.synchronize()
    begin = time.perf_counter()
    handles = [clock.mark() for _ in range(repeats)]
    mark_us = (time.perf_counter() - begin) / repeats * 1e6
    torch.cuda.synchronize()
    first = clock.read(handles[:-64])
    begin = time.perf_counter()
    last = clock.read(handles[-64:])
    read_us = (time.perf_counter() - begin) * 1e6
    stamps = [stamp for stamp in first + last if stamp is not None]
    begin = time.perf_counter()
    for _ in range(repeats):
        counts = count_tokens(batch)
    count_tokens_us = (time.perf_counter() - begin) / repeats * 1e6
    begin = time.perf_counter()
    for _ in range(repeats):
        bench.observer.count_flops(counts["rows"], counts["patches"])
    return {
        "count_flops_us": (time.perf_counter() - begin) / repeats * 1e6,
        "mark_us": mark_us,
        "read_us": read_us,
        "write_us": write_us,
        "count_tokens_us": count_tokens_us,
        "back_to_back_stamps_us": statistics.median(b - a for a, b in itertools.pairwise(stamps)) * 1e6,
    }


def profiled(bench: Bench) -> dict[str, Any]:
    """CUDA calls of a step by kind, bare and instrumented, of those threads that launch kernels (forward, backward) and
    of the others, which is the one that reads; stamps against the profiler's timeline."""
    counts, others, result = {}, {}, {}
    for kind in ("bare", OURS):
        bench.steps(1, kind)
        bench.take_rows()
        activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as profile:
            bench.steps(1, kind)
        calls = [(event.thread, event.name) for event in profile.events() if event.name.startswith("cu")]
        training = {thread for thread, name in calls if "Launch" in name}
        kinds = [(thread in training, word) for thread, name in calls for word in COUNTED if word in name]
        counts[kind] = Counter(word for is_training, word in kinds if is_training)
        others[kind] = Counter(word for is_training, word in kinds if not is_training)
    (row,) = bench.take_rows()
    starts = sorted({event.time_range.start for event in profile.events() if event.name == "_stamp"})
    result["stamps_over_profiler"] = row["step_time_s"] / ((starts[-1] - starts[0]) * 1e-6)
    for name in COUNTED:
        result[f"{name}_per_step_bare"] = counts["bare"][name]
        result[f"{name}_per_step_extra"] = counts[OURS][name] - counts["bare"][name]
        result[f"{name}_of_other_threads"] = [others["bare"][name], others[OURS][name]]
    result["Launch_per_step_extra"] -= 1  # the one that begins the block and not a step
    return result


def table(result: dict[str, Any]) -> Table:
    """What each instrument says and costs."""
    made = Table(title=f"{result['recipe']} {result['micro_batch']}x{result['seq_len']} on {result['device']}")
    for name in ("instrument", "median tokens/s", "mean tokens/s", "mean over wall clock's", "its cost, 95 % interval"):
        made.add_column(name, justify="left" if name == "instrument" else "right")
    costs = costs_of(instruments.ALL)
    for name, says in result["says"].items():
        median, mean = says["median_tokens_per_s"], says["harmonic_mean_tokens_per_s"]
        low, high = result.get(f"{costs.get(name)}_ci95", (0.0, 0.0))
        cost_of = f"{result[costs[name]]:+.2%} ({low:+.2%} to {high:+.2%})" if name in costs else "-"
        shown = {"bare": "wall clock, bare steps"}.get(name, name)
        made.add_row(shown, f"{median:,.0f}", f"{mean:,.0f}", f"{mean / says['wall_tokens_per_s']:.4f}", cost_of)
    return made


def main() -> None:
    """Measure, print the tables, end with one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="llama8b_peft")
    parser.add_argument("--micro-batch", type=int, default=4)
    parser.add_argument("--accumulate", type=int, default=1, help="micro-batches a step")
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--block", type=int, default=8)
    parser.add_argument("--others", nargs="+", default=[], choices=instruments.SHORT, help="further instruments")
    parser.add_argument("override", nargs="*", help="further overrides of the recipe, as of python -m cctrain")
    options = parser.parse_args()
    for name, least in (("micro_batch", 1), ("accumulate", 1), ("seq_len", 1), ("rounds", 2), ("block", 1)):
        if getattr(options, name) < least:
            parser.error(f"--{name.replace('_', '-')} {getattr(options, name)}: allowed is {least} or more")
    if not torch.cuda.is_available() and not options.recipe.startswith("tiny_"):
        parser.error(f"--recipe {options.recipe} needs a GPU, and none is here; tiny_llama_peft runs on a CPU")
    os.environ.update(RANK_OF_ONE)
    with tempfile.TemporaryDirectory() as folder:
        try:
            bench = Bench(options, Path(folder))
        except RequestError as error:
            parser.error(str(error))
        bench.steps(10, OURS)
        for kind in (TIMERS, *bench.others):
            bench.steps(2, kind)
        bench.take_rows()
        bench.timers("iteration").elapsed()
        is_gpu = torch.cuda.is_available()
        result: dict[str, Any] = {"device": torch.cuda.get_device_name() if is_gpu else "cpu", **vars(options)}
        for part in (host_work(bench), cost(bench, options), profiled(bench) if is_gpu else {}):
            print(part, flush=True)
            result |= part
    marks = 4 + 2 * (options.accumulate - 1)
    counting_us = result["count_tokens_us"] + result["count_flops_us"]
    per_step_us = marks * result["mark_us"] + counting_us + result["write_us"]
    per_second_us = 2 * result["read_us"]  # of the thread, which holds the interpreter for a part of it
    result["cost_by_count"] = per_step_us * 1e-6 / result["bare_step_s"] + per_second_us * 1e-6
    for name, value in result.items():
        print(f"{name:28} {value}")
    Console(width=120).print(table(result))
    print(json.dumps(result), flush=True)
    os._exit(0)  # AutoModel's exit handlers wait for process groups that have no peers here


if __name__ == "__main__":
    main()
