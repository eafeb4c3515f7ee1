"""What step=graphed is worth, and whether it is the same training: lines side by side in one process on one GPU.

Background: a shared host makes one run 10 % slower than the next, so two runs tell little of two steps. Here every line
is a recipe of its own, with its own weights, in one process: all see the same data in the same order, and take turns in
blocks of steps, plain and tolled, in an order that drift does not favour. A block begins with a drained queue and two
steps that are not measured; times are stamps of the GPU's clock.

    python benchmarks/graphed.py recipe=llama8b_peft --shape 4x256 --out 4x256.json
    python benchmarks/graphed.py recipe=llama8b_peft --shape packed4096
    python benchmarks/graphed.py recipe=llama8b_peft --shape 4x256 --modes off --rounds 10 --block 10 --noise \\
        --line 'uncompiled: step=graphed step.compile=false'
    python benchmarks/graphed.py recipe=gemma31b_peft --shape 1x512 --lines graphed uncompiled \\
        --line 'uncompiled: step=graphed step.compile=false'
    python benchmarks/graphed.py recipe=tiny_llama_peft --shape 2x64 --rounds 3    on a CPU: plain, and unrecorded

Lines are AutoModel's own step and the graphed one, and further ones by --line. --noise adds two that show how far
AutoModel's own step comes from itself by rounding alone: with another of torch's attention kernels, and with its layers
compiled as the graphed step's are (its loop left as it is). Memory must hold the weights of all: --lines takes some of
them, the first of which the others are compared with.

Of every line, off and tolled: the step time; over the first line's, as the mean of the rounds' ratios with a 95 % t
interval (the replicate is the round); what is kept of throughput under the tolls, likewise; and how many times the
floor it takes, the model's FLOPs at the rate of large matrix products, measured before and after in this process. And
for the same steps the losses and gradient norms of all lines, with how far they are from the first one's: over all
steps, and over the last half, which shows a drift. The last line of stdout is one JSON object; --out keeps all of it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from instrument import RANK_OF_ONE
from peers_lines import shape_overrides
from rich.console import Console
from rich.table import Table
from torch.nn.attention import SDPBackend, sdpa_kernel

from cctrain import ratios
from cctrain.config import Config
from cctrain.emulation import in_rank
from cctrain.emulation.blocks import SETTLING_STEPS, schedule
from cctrain.emulation.injector import attached
from cctrain.emulation.profile import emulated_note, load_profile
from cctrain.engines import automodel
from cctrain.engines.compiled import compile_layers
from cctrain.errors import RequestError
from cctrain.launcher import NO_MULTICAST
from cctrain.peaks import peak_flops
from cctrain.platform import host
from cctrain.request.checks import check_gpus, check_layout
from cctrain.request.compose import compose_config
from cctrain.request.data_files import prepare_data
from cctrain.request.graphed import check_step, recipe_run
from cctrain.request.recipe import VLM, is_cpu_recipe, located
from cctrain.samples import SampleFile
from cctrain.timing.device import drain
from cctrain.tolls import matmul

OFF, TOLLED = "off", "tolled"
STOCK, GRAPHED = "AutoModel's step", "graphed"
NOISE: dict[str, dict[str, Any]] = {
    f"{STOCK}, another attention": {"around": lambda: sdpa_kernel(SDPBackend.MATH)},
    f"{STOCK}, layers compiled": {"is_compiled": True},
}
"""Lines of --noise, and what is different with them."""


class Line:
    """One recipe, set up, whose steps can be taken; `around` is entered around them."""

    def __init__(
        self,
        config: Config,
        folder: Path,
        *,
        is_compiled: bool = False,
        around: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self._around = around
        for name in ("checkpoints", "samples"):
            (folder / name).mkdir(parents=True)
        prepare_data(config.data, folder, is_vlm=config.train["recipe"] == VLM)
        step = {"kind": config.step.kind.value, "compile": config.step.compile}
        recipe = recipe_run(config, check_layout(config.train, config.measure, 1))
        if is_compiled and recipe.get("peft"):
            recipe["peft"]["use_triton"] = False  # as the graphed step has it: the compiler cannot fuse those kernels
        self.recipe, self.observer = automodel.build(
            located(recipe, folder), SampleFile(folder / "samples" / "rank0.jsonl"), step=step
        )
        self.recipe.setup()
        self.observer.thread.close()  # it would take the rows
        for part in self.recipe.model_parts:
            part.train()
        if is_compiled:
            compile_layers(self.recipe.model_parts[0])
        self.graphed = None if step["kind"] == "stock" else self.recipe.graphed
        outside = _current_stream()
        if self.graphed:
            self.graphed.begin()
        self._stream = _current_stream()
        _set_stream(outside)
        self.observer.begin()
        self.recipe.timestamp = 0.0  # AutoModel's loop sets it
        # A new epoch whenever the data end; the scheduler's own iterator ends with them.
        self._batches = itertools.chain.from_iterable(itertools.repeat(self.recipe.step_scheduler))
        self._logs: list[Any] = []
        self.rows: list[dict[str, Any]] = []

    def steps(self, count: int) -> list[dict[str, Any]]:
        """Take `count` steps from a device that stands still until it does again. Returns their rows."""
        outside = _current_stream()
        _set_stream(self._stream)
        self.observer.timer.resume()
        with self._around():
            for _ in range(count):
                log = self.recipe._run_train_optim_step(next(self._batches), 1.0)  # noqa: SLF001
                self.recipe.log_train_metrics(log)
                self._logs.append(log)
            drain()
        _set_stream(outside)
        rows = self.observer.timer.finished()
        assert len(rows) == count
        self.rows += rows
        return rows

    def trained(self) -> dict[str, list[float]]:
        """Loss and gradient norm of every step so far."""
        if self.graphed:
            self.graphed.drain()
            self.graphed.known()
        return {
            name: [float(log.metrics[key]) for log in self._logs]
            for name, key in (("loss", "loss"), ("norm", "grad_norm"))
        }

    def flops(self) -> float | None:
        """Of a step, on average over all so far."""
        counted = [self.observer.count_flops(row["rows"], row["patches"]).get("model_flops") for row in self.rows]
        known = [count for count in counted if count is not None]
        return statistics.fmean(known) if known else None


def _current_stream() -> Any:
    return torch.cuda.current_stream() if torch.cuda.is_available() else None


def _set_stream(stream: Any) -> None:
    if stream is not None:
        torch.cuda.set_stream(stream)


def measure(lines: dict[str, Line], options: argparse.Namespace, modes: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Seconds a step of each line under each mode, a number a round."""
    injector = attached()
    if injector:
        injector.check()
    for line in lines.values():
        line.steps(options.warmup)
    arms = list(itertools.product(lines, modes))
    names = [f"{name}/{mode}" for name, mode in arms]
    slots = schedule(len(arms) * options.rounds * (options.block + SETTLING_STEPS), names, options.rounds)
    found: dict[str, dict[str, Any]] = {name: {mode: [] for mode in modes} for name in lines}
    for _, block in itertools.groupby(slots, key=lambda slot: slot.block):
        of_block = list(block)
        name, mode = arms[names.index(of_block[0].arm)]
        if injector:
            injector.set_tolls(options.profile if mode == TOLLED else None)
        rows = lines[name].steps(len(of_block))
        measured = [row["step_time_s"] for row, slot in zip(rows, of_block, strict=True) if not slot.is_settling]
        found[name][mode].append(statistics.fmean(measured))
    if injector:
        injector.set_tolls(None)
    return found


def over(one: Sequence[float], other: Sequence[float]) -> dict[str, Any]:
    """Step times over others of the same rounds."""
    value, ci95 = ratios.geometric_mean([a / b for a, b in zip(one, other, strict=True)])
    return {"value": value, "ci95": ci95}


def results(lines: dict[str, Line], found: dict[str, dict[str, Any]], tflops: Sequence[float]) -> dict[str, Any]:
    """What it came to, by line."""
    first = next(iter(lines))
    trained = {name: line.trained() for name, line in lines.items()}
    num_steps = len(trained[first]["loss"])
    peak = peak_flops(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
    made: dict[str, Any] = {}
    for name, line in lines.items():
        off, tolled = (found[name].get(mode) for mode in (OFF, TOLLED))
        needed = line.flops()
        made[name] = {
            "step_s": {mode: statistics.median(seconds) for mode, seconds in found[name].items()},
            "over_first": {mode: over(seconds, found[first][mode]) for mode, seconds in found[name].items()},
            "keep_ratio": over(off, tolled) if off and tolled else None,
            "floor_s": needed / max(tflops) / 1e12 if needed and tflops else None,
            "mfu": needed / statistics.median(off) / peak if needed and peak and off else None,
            "step": line.recipe.step_facts(),
            **{f"{kind}_difference": difference(trained[first][kind], trained[name][kind]) for kind in trained[first]},
        }
    return {"num_steps": num_steps, "lines": made, "trained": trained, "seconds_by_round": found}


def difference(base: Sequence[float], other: Sequence[float]) -> dict[str, float]:
    """Of two series of the same steps: the mean of other - base over all steps and over the last half, and the largest
    distance."""
    apart = [b - a for a, b in zip(base, other, strict=True)]
    late = apart[len(apart) // 2 :]
    return {
        "mean": statistics.fmean(apart),
        "mean_of_last_half": statistics.fmean(late),
        "spread_of_last_half": statistics.pstdev(late),
        "largest": max(map(abs, apart)),
    }


def tables(made: dict[str, Any], title: str, tolls: str | None) -> Iterator[Table]:
    """Times, and losses; `tolls` is the profile of the tolled steps, None where there are none."""
    times = Table(title=title, caption=emulated_note() if tolls else None)
    for name in ("line", "mode", "step", "over the first line's", "kept under tolls", "of the floor", "MFU"):
        times.add_column(name, justify="left" if name in ("line", "mode") else "right")
    for name, line in made["lines"].items():
        for mode, seconds in line["step_s"].items():
            floor, mfu = line["floor_s"], line["mfu"] if mode == OFF else None
            times.add_row(
                *(name, f"emulated {tolls}" if mode == TOLLED else mode, f"{1e3 * seconds:.1f} ms"),
                _text(line["over_first"][mode]),
                _text(line["keep_ratio"]) if mode == TOLLED else "",
                f"{seconds / floor:.2f}x" if floor else "n/a",
                f"{mfu:.1%}" if mfu else "",
            )
    yield times
    losses = Table(title=f"losses and gradient norms of {made['num_steps']} steps, less the first line's")
    for name in ("line", "of", "mean", "mean of last half", "its spread", "largest"):
        losses.add_column(name, justify="left" if name in ("line", "of") else "right")
    for name, line in made["lines"].items():
        for kind in ("loss", "norm"):
            losses.add_row(name, kind, *(f"{number:+.5f}" for number in line[f"{kind}_difference"].values()))
    yield losses


def _text(ratio: dict[str, Any] | None) -> str:
    if ratio is None:
        return ""
    interval = f" ({ratio['ci95'][0]:.3f}-{ratio['ci95'][1]:.3f})" if ratio["ci95"] else ""
    return f"{ratio['value']:.3f}{interval}"


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="4x256", help="SAMPLESxTOKENS or packedTOKENS")
    parser.add_argument("--modes", nargs="+", default=[OFF, TOLLED], choices=[OFF, TOLLED], help="both; off on a CPU")
    parser.add_argument("--tolls", default="b300", help="the profile of the mode tolled, as of cc=emulated tolls=")
    parser.add_argument("--rounds", type=int, default=8, help="blocks of each line and mode")
    parser.add_argument("--block", type=int, default=6, help="measured steps of a block")
    parser.add_argument("--warmup", type=int, default=8, help="steps of each line before the first round")
    parser.add_argument("--noise", action="store_true", help="AutoModel's step by other kernels as well")
    parser.add_argument("--line", action="append", default=[], metavar="NAME: OVERRIDE ...", help="a further line")
    parser.add_argument("--lines", nargs="+", metavar="NAME", help="only these; others are compared with the first")
    parser.add_argument("--out", type=Path, help="file for everything, as JSON")
    parser.add_argument("override", nargs="+", help="of all lines, as of python -m cctrain: recipe=NAME first")
    options = parser.parse_intermixed_args()
    for name in ("rounds", "block"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} {getattr(options, name)}: allowed is 1 or more")
    try:  # all of it before anything is set up
        options.profile = load_profile(options.tolls)
        options.configs = configs(options)
    except RequestError as error:
        parser.error(str(error))
    return options


def configs(options: argparse.Namespace) -> dict[str, Config]:
    """What each line is composed to. Raises RequestError."""
    kinds = {STOCK: ["step=stock"], GRAPHED: ["step=graphed"]}
    kinds |= {name: ["step=stock"] for name in (NOISE if options.noise else ())}
    kinds |= {name: overrides.split() for name, _, overrides in (line.partition(":") for line in options.line)}
    unknown = [name for name in options.lines or () if name not in kinds]
    if unknown:
        raise RequestError(f"--lines {unknown[0]!r}: the lines are {', '.join(map(repr, kinds))}; --line adds one")
    if options.lines:
        kinds = {name: kinds[name] for name in options.lines}
    common = [
        "weights=random",
        *shape_overrides(options.shape),
        *options.override,
        "track=none",
        "measure.steps=100000",
    ]
    composed = {name: compose_config([*common, *overrides]) for name, overrides in kinds.items()}
    for config in composed.values():
        check_step(config, check_layout(config.train, config.measure, 1))
        if not is_cpu_recipe(config.train):
            check_gpus(1, torch.cuda.device_count(), config.recipe.name)
    return composed


def matmul_rate() -> list[float]:
    """TFLOP/s of large matrix products now; nothing where the lines leave no memory for them."""
    try:
        return [matmul.measure()[0].value]
    except torch.OutOfMemoryError:
        return []


def main() -> None:
    """Measure, print the tables, end with one JSON line."""
    options = parse()
    os.environ.update(RANK_OF_ONE | NO_MULTICAST)
    composed = options.configs
    is_gpu = not is_cpu_recipe(next(iter(composed.values())).train)
    modes = options.modes if is_gpu else [OFF]
    if is_gpu:
        in_rank.inject()
    with tempfile.TemporaryDirectory() as folder:
        lines = {}
        for number, (name, config) in enumerate(composed.items()):
            print(f"setting up: {name}", flush=True)
            lines[name] = Line(config, Path(folder) / str(number), **NOISE.get(name, {}))
        logging.getLogger().setLevel(logging.WARNING)  # AutoModel's has a line a step
        rates = matmul_rate() if is_gpu else []
        found = measure(lines, options, modes)
        rates += matmul_rate() if is_gpu else []
        made = results(lines, found, rates)
    device = torch.cuda.get_device_name() if is_gpu else "CPU"
    seen = host.observe({})
    setting = {"device": device, "matmul_tflops": rates, "cpu": seen["cpu"], "num_cores": seen["num_cores"]}
    given = {name: value for name, value in vars(options).items() if name not in ("out", "profile", "configs")}
    setting |= {"torch": torch.__version__, **given, "modes": modes}
    setting["emulated"] = emulated_note() if TOLLED in modes else None
    if options.out:
        options.out.write_text(json.dumps(setting | made, default=str), encoding="utf-8")
    tolls = options.profile.name if TOLLED in modes else None
    unrecorded = "" if is_gpu else ", unrecorded"
    for table in tables(made, f"{' '.join(options.override)} {options.shape}, on {device}{unrecorded}", tolls):
        Console(width=140).print(table)
    print(json.dumps({**setting, **{name: made[name] for name in ("num_steps", "lines")}}, default=str), flush=True)
    os._exit(0)  # AutoModel's exit handlers wait for process groups that have no peers here


if __name__ == "__main__":
    main()
