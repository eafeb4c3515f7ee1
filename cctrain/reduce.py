"""Samples of all ranks to the steps and the summary of the record.

Ranks write what they saw; nothing is reduced while training. A step counts when every rank finished it, so that a
crash leaves whole steps only.
"""

from __future__ import annotations

import dataclasses
import gc
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cctrain import flops, stats
from cctrain.records import Estimate, SteadyState, StepRecord, Straggler, Summary
from cctrain.samples import SamplesTail
from cctrain.straggler import find_straggler

_GIB = 2**30
_BLOCK_BYTES = 16 << 10
_KEPT = ("phases_s", "crossings")
"""Of a rank's step, what is asked for once the steps are known."""


@dataclass(frozen=True, slots=True)
class RankSamples:
    """What one rank wrote: who it is, its steps and, unless it died, its last line."""

    start: dict[str, Any]
    """Its `start` line with its `ready` line, which adds `data_rank` and the clock's name."""
    steps: dict[int, dict[str, Any]]
    end: dict[str, Any] | None


def read_samples(run_dir: Path) -> dict[int, RankSamples]:
    """The samples of every rank that wrote any. A last line cut short by a crash is left out."""
    ranks: dict[int, RankSamples] = {}
    for number, line in SamplesTail(run_dir).read():
        _take(ranks, number, line)
    return ranks


def reduce_samples(
    run_dir: Path, warmup: int, recipe: Mapping[str, Any] | None = None
) -> tuple[dict[int, RankSamples], tuple[StepRecord, ...]]:
    """The samples of every rank, and the steps that all of them finished, as `step_records` makes them.

    Read side by side, a block of each file at a time: of what is a step already only `_KEPT` is held on to, so that a
    run of a thousand ranks fits into memory.
    """
    open_ranks: dict[int, RankSamples] = {}
    reduced: dict[int, dict[int, dict[str, Any]]] = defaultdict(dict)
    steps: list[StepRecord] = []
    tail = SamplesTail(run_dir, _BLOCK_BYTES)
    gc.disable()  # it would walk millions of rows again and again, none of which is garbage
    try:
        while lines := list(tail.read()):
            for number, line in lines:
                _take(open_ranks, number, line)
            found = step_records(open_ranks, max(0, warmup - len(steps)), recipe)
            for number, rank in open_ranks.items():
                for step in found:
                    row = rank.steps.pop(step.step)
                    reduced[number][step.step] = {key: row[key] for key in _KEPT if key in row}
            steps += found
    finally:
        gc.freeze()
        gc.enable()
    ranks = {
        number: RankSamples(rank.start, reduced[number] | rank.steps, rank.end) for number, rank in open_ranks.items()
    }
    return ranks, tuple(steps)


def _take(ranks: dict[int, RankSamples], number: int, line: dict[str, Any]) -> None:
    """Sort a line of rank `number` by what it says. One that never said that it started is nobody's."""
    event = line.get("event")
    if event == "start":
        ranks[number] = RankSamples(line, {}, None)
    elif number not in ranks:
        return
    elif "step" in line:
        ranks[number].steps[int(line["step"])] = line
    elif event == "ready":
        ranks[number].start.update(line)
    elif event in ("end", "error"):
        ranks[number] = dataclasses.replace(ranks[number], end=line)


def step_records(
    ranks: Mapping[int, RankSamples], warmup: int, recipe: Mapping[str, Any] | None = None
) -> tuple[StepRecord, ...]:
    """The steps that every rank finished, oldest first; the first `warmup` of them are warm-up.

    FLOPs are counted as the AutoModel `recipe` trains, and left out without one.
    """
    if not ranks or len(ranks) < next(iter(ranks.values())).start["world_size"]:
        return ()
    finished = set.intersection(*(set(rank.steps) for rank in ranks.values()))
    ordered = [ranks[rank] for rank in sorted(ranks)]
    count = _flops_counter(ordered, recipe)
    return tuple(
        _step_record(step, ordered, count, is_warmup=index < warmup) for index, step in enumerate(sorted(finished))
    )


_CountFlops = Callable[[Iterable[dict[str, Any]]], tuple[float | None, float | None]]


def _flops_counter(ranks: Sequence[RankSamples], recipe: Mapping[str, Any] | None) -> _CountFlops:
    """Model and hardware FLOPs of the rows of one step, by what the first rank says of its model."""
    config = ranks[0].start.get("model_config")
    shape = flops.shape_of(config) if config else None
    training = flops.training_of(recipe) if recipe else None
    is_eager = recipe is not None and recipe["model"].get("attn_implementation") == "eager"
    computed = flops.Savings(causal=False, window=False, packing=False) if is_eager else flops.Savings()

    def count(rows: Iterable[dict[str, Any]]) -> tuple[float | None, float | None]:
        if not shape or not training:
            return None, None
        model = hardware = 0.0
        for row in rows:
            padded, documents = [list(part) for part in zip(*row["rows"], strict=True)]
            patches = [list(part) for part in zip(*row.get("patches", []), strict=True)] or [[], []]
            sequences = flops.Sequences(padded, documents, *patches)
            model += flops.model_flops(shape, training, sequences)
            hardware += flops.hardware_flops(shape, training, sequences, computed)
        return model, hardware

    return count


def _step_record(step: int, ranks: Sequence[RankSamples], count_flops: _CountFlops, *, is_warmup: bool) -> StepRecord:
    rows = [rank.steps[step] for rank in ranks]
    times = [float(row["step_time_s"]) for row in rows]
    slowest = max(range(len(rows)), key=times.__getitem__)
    # Ranks that share their samples, as tensor-parallel ones do, count them once.
    data_rows = {rank.start["data_rank"]: row for rank, row in zip(ranks, rows, strict=True)}.values()
    model_flops, hardware_flops = count_flops(data_rows)
    return StepRecord(
        step=step,
        step_time_s=times[slowest],
        rank_step_time_s=tuple(times),
        rank_begin_s=tuple(row["begin_s"] for row in rows) if all("begin_s" in row for row in rows) else None,
        data_wait_s=max(float(row["data_wait_s"]) for row in rows),
        phases_s=rows[slowest].get("phases_s"),
        micro_batches_s=rows[slowest].get("micro_batches_s"),
        padded_tokens=sum(row["padded_tokens"] for row in data_rows),
        real_tokens=sum(row["real_tokens"] for row in data_rows),
        label_tokens=sum(row["label_tokens"] for row in data_rows),
        num_images=sum(row["num_images"] for row in data_rows),
        model_flops=model_flops,
        hardware_flops=hardware_flops,
        engine_tokens=rows[0].get("engine_tokens"),
        engine_tokens_per_s_per_gpu=rows[0].get("engine_tokens_per_s_per_gpu"),
        loss=rows[0].get("loss"),
        is_warmup=is_warmup or bool(rows[0].get("is_settling")),
        is_tolled=rows[0].get("is_tolled"),
        arm=rows[0].get("arm"),
        block=rows[0].get("block"),
    )


def measured_steps(steps: Sequence[StepRecord]) -> list[StepRecord]:
    """Those after the warm-up, from which a summary is made; none where a clock stood still or went backwards."""
    measured = [step for step in steps if not step.is_warmup]
    return measured if all(is_sound(step) for step in measured) else []


def is_sound(step: StepRecord) -> bool:
    """Whether every rank's clock went forward through the step, and the slowest's through each of its phases."""
    return min(step.rank_step_time_s) > 0 and all(span >= 0 for span in (step.phases_s or {}).values())


def summarize(steps: Sequence[StepRecord], world: int, gpu_name: str | None) -> Summary | None:
    """What the measured steps of `world` ranks reached; None where there are none, or a clock that went backwards."""
    measured = measured_steps(steps)
    if not measured:
        return None
    found = stats.find_steady([step.step_time_s for step in measured])
    steady = measured[found.cut :]
    times = _longest([step.rank_step_time_s for step in steady])
    seconds = sum(times)
    interval = stats.batch_means(times)
    rate = sum(step.padded_tokens for step in steady) / seconds / world
    peak = flops.peak_flops(gpu_name) if gpu_name else None
    losses = [step.loss for step in steps]
    return Summary(
        step_time_s=Estimate(
            median=statistics.median(step.step_time_s for step in steady),
            mean=seconds / len(steady),
            ci95=_around(interval.mean, interval.half_width),
        ),
        tokens_per_s_per_gpu=Estimate(
            median=statistics.median(step.padded_tokens / step.step_time_s / world for step in steady),
            mean=rate,
            ci95=_around(rate, _rate_half_width([step.padded_tokens / world for step in steady], times, rate)),
        ),
        real_tokens_per_s_per_gpu=sum(step.real_tokens for step in steady) / seconds / world,
        label_tokens_per_s_per_gpu=sum(step.label_tokens for step in steady) / seconds / world,
        first_loss=losses[0],
        last_loss=losses[-1],
        mfu=_utilization([step.model_flops for step in steady], seconds * world, peak),
        hfu=_utilization([step.hardware_flops for step in steady], seconds * world, peak),
        peak_flops_per_s=peak,
        steady_state=_steady_state(measured, found),
    )


def _rate_half_width(tokens: Sequence[float], times: Sequence[float], rate: float) -> float | None:
    """Of tokens over time as a ratio of two means, which steps of unequal length move together: the interval of what a
    step's tokens are above the rate (the linearised, or delta, method)."""
    above = stats.batch_means([count - rate * time for count, time in zip(tokens, times, strict=True)]).half_width
    return None if above is None else above / statistics.fmean(times)


def _longest(steps: Sequence[Sequence[float]]) -> Sequence[float]:
    """The step times of the rank that took longest for all `steps` (of every rank) together.

    Each rank's times add up to the wall time. The maxima of the single steps add up to more: a rank that ends one step
    late begins the next one late.
    """
    return max(zip(*steps, strict=True), key=sum)


def _utilization(counts: Sequence[float | None], gpu_seconds: float, peak: float | None) -> float | None:
    known = [count for count in counts if count is not None]
    return sum(known) / gpu_seconds / peak if peak and len(known) == len(counts) else None


def of_the_ranks(summary: Summary, steps: Sequence[StepRecord], ranks: Mapping[int, RankSamples]) -> Summary:
    """`summary` with what only the ranks' samples say: their memory, and which of them the others wait for."""
    memory = _memory_gib(ranks)
    return dataclasses.replace(
        summary,
        peak_memory_gib=max(memory["allocated"]) if memory else None,
        rank_peak_memory_gib=memory,
        straggler=_straggler([step for step in steps if step.step >= summary.steady_state.first_step], ranks),
    )


def _straggler(steady: Sequence[StepRecord], ranks: Mapping[int, RankSamples]) -> Straggler | None:
    phases = [[ranks[rank].steps[step.step]["phases_s"] for rank in sorted(ranks)] for step in steady]
    if any("forward_backward" in row for row in phases[0]):
        return None  # a pipeline's stages end their phases one after the other, whoever is slow
    is_one_clock = len({rank.start.get("host") for rank in ranks.values()}) == 1
    begins = [step.rank_begin_s for step in steady if step.rank_begin_s]
    return find_straggler(phases, begins if is_one_clock and len(begins) == len(steady) else None)


def _memory_gib(ranks: Mapping[int, RankSamples]) -> dict[str, list[float]] | None:
    """Peaks of each rank; None on CPU, or where a rank ended early."""
    ends = [ranks[rank].end or {} for rank in sorted(ranks)]
    if any(end.get("peak_allocated_bytes") is None for end in ends):
        return None
    return {name: [end[f"peak_{name}_bytes"] / _GIB for end in ends] for name in ("allocated", "reserved")}


def _around(mean: float, half_width: float | None) -> tuple[float, float] | None:
    return None if half_width is None else (mean - half_width, mean + half_width)


def _steady_state(measured: Sequence[StepRecord], found: stats.Steady) -> SteadyState:
    first, num_steps = measured[found.cut].step, len(measured) - found.cut
    if num_steps < stats.MIN_STEPS:
        plural = "s were" if num_steps > 1 else " was"
        why = f"not steady, because only {num_steps} step{plural} measured and {stats.MIN_STEPS} are needed"
    elif found.shift:
        step = measured[found.shift.index].step
        why = f"not steady, because step times changed by {found.shift.change:+.1%} at step {step} and stayed there"
    elif found.is_settling:
        why = "not steady, because step times drift through the run; raise measure.warmup if it is warm-up"
    else:
        before = "warm-up and settling" if measured[0].arm else f"{measured[0].step - 1} of warm-up"
        why = f"steady from step {first}: {before}, {found.cut or 'no'} more by MSER-5"
    return SteadyState(first_step=first, num_steps=num_steps, is_steady=why.startswith("steady"), why=why)
