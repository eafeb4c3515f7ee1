"""Samples of all ranks to the steps and the summary of the record.

Ranks write what they saw; nothing is reduced while training. A step counts when every rank finished it, so that a
crash leaves whole steps only.
"""

from __future__ import annotations

import dataclasses
import gc
import math
import statistics
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cctrain import flops, stats
from cctrain.peaks import peak_flops
from cctrain.records import Estimate, SteadyState, StepRecord, Summary
from cctrain.samples import lines_of_ranks, parse_line
from cctrain.stats import Floats
from cctrain.straggler import Last, find_straggler, last_rank

_GIB = 2**30
_AT_ONCE = 32
"""Lines of a rank that are taken before the next rank's."""
_NUMBERS = ("step_time_s", "data_wait_s", "padded_tokens", "real_tokens", "label_tokens", "num_images")
_FIRST_PHASE = len(_NUMBERS) + 1
_numbers_of = itemgetter(*_NUMBERS)


class Sample(NamedTuple):
    """One step of one rank, packed: a parsed line is ten times as large, and there are millions of them."""

    numbers: bytes
    """float64: `_NUMBERS`, `begin_s` or NaN, and the phases in the order in which they ran."""
    rows: Sequence[Any]
    patches: Sequence[Any]
    """As metrics.count_tokens has them, for the FLOPs."""
    line: bytes


@dataclass(frozen=True, slots=True)
class RankSamples:
    """What one rank wrote: who it is, its steps and, unless it died, its last line."""

    start: dict[str, Any]
    """Its `start` line with its `ready` line, which adds `data_rank` and the clock's name."""
    steps: dict[int, Sample]
    end: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Reduced:
    """The samples of a run, reduced."""

    ranks: dict[int, RankSamples]
    """Every rank that wrote any, with those of its steps that not all have finished."""
    steps: tuple[StepRecord, ...]
    """Those that all ranks finished, oldest first."""
    lasts: dict[int, Last | None]
    """Which rank was last in each of them."""
    crossings: list[dict[int, Any]]
    """Of each rank by step, where they were counted."""


def reduce_samples(run_dir: Path, warmup: int, recipe: Mapping[str, Any] | None = None) -> Reduced:
    """Read the samples of every rank that wrote any, side by side, and let go of what is a step.

    A last line cut short by a crash is left out. FLOPs are counted as the AutoModel `recipe` trains.
    """
    ranks: dict[int, RankSamples] = {}
    crossings: dict[int, dict[int, Any]] = defaultdict(dict)
    steps: list[StepRecord] = []
    lasts: dict[int, Last | None] = {}
    files = lines_of_ranks(run_dir)
    is_collecting = gc.isenabled()
    gc.disable()  # there are no cycles here, and walking millions of parsed numbers takes as long as parsing them
    try:
        while taken := [(number, list(islice(lines, _AT_ONCE))) for number, lines in files.items()]:
            for number, lines in taken:
                for line in lines:
                    take(ranks, number, line)
            for step, last, samples in finished_steps(ranks, warmup - len(steps), recipe):
                steps.append(step)
                lasts[step.step] = last
                if b'"crossings"' in samples[0].line:
                    for number, sample in zip(sorted(ranks), samples, strict=True):
                        crossings[number][step.step] = _parsed(sample).get("crossings")
            files = {number: files[number] for number, lines in taken if lines}
    finally:
        if is_collecting:
            gc.enable()
    return Reduced(ranks, tuple(steps), lasts, [crossings[number] for number in ranks])


def _parsed(sample: Sample) -> dict[str, Any]:
    return parse_line(sample.line) or {}


def take(ranks: dict[int, RankSamples], number: int, line: bytes) -> None:
    """Sort a line of rank `number` by what it says. One that never said that it started is nobody's."""
    parsed = parse_line(line) or {}
    event = parsed.get("event")
    if event == "start":
        ranks[number] = RankSamples(parsed, {}, None)
    elif number not in ranks:
        return
    elif "step" in parsed:
        phases_s = (parsed.get("phases_s") or {}).values()
        numbers = array("d", (*_numbers_of(parsed), parsed.get("begin_s", math.nan), *phases_s))
        ranks[number].steps[int(parsed["step"])] = Sample(
            numbers.tobytes(), parsed.get("rows", ()), parsed.get("patches", ()), line
        )
    elif event == "ready":
        ranks[number].start.update(parsed)
    elif event in ("end", "error"):
        ranks[number] = dataclasses.replace(ranks[number], end=parsed)


def finished_steps(
    ranks: Mapping[int, RankSamples], warmup: int, recipe: Mapping[str, Any] | None = None
) -> Iterator[tuple[StepRecord, Last | None, list[Sample]]]:
    """Take the steps that every rank finished out of `ranks`, oldest first; the first `warmup` of them are warm-up.

    With each, which rank was last, and the samples of all, by rank. FLOPs are counted as the AutoModel `recipe` trains,
    and left out without one.
    """
    if not ranks or len(ranks) < next(iter(ranks.values())).start["world_size"]:
        return
    finished = set.intersection(*(set(rank.steps) for rank in ranks.values()))
    ordered = [ranks[rank] for rank in sorted(ranks)]
    count = _flops_counter(ordered, recipe)
    is_one_clock = len({rank.start.get("host") for rank in ordered}) == 1
    for index, step in enumerate(sorted(finished)):
        samples = [rank.steps.pop(step) for rank in ordered]
        size = min(len(sample.numbers) for sample in samples)
        numbers = np.frombuffer(b"".join(sample.numbers[:size] for sample in samples)).reshape(len(samples), -1)
        record = _step_record(step, ordered, samples, numbers, count, is_warmup=index < warmup)
        phases = list(_parsed(samples[0]).get("phases_s") or [])
        yield (
            record,
            last_rank(phases, numbers[:, _FIRST_PHASE:], record.rank_begin_s if is_one_clock else None),
            samples,
        )


_CountFlops = Callable[[Sequence[Sample]], tuple[float | None, float | None]]


def _flops_counter(ranks: Sequence[RankSamples], recipe: Mapping[str, Any] | None) -> _CountFlops:
    """Model and hardware FLOPs of the samples of one step, by what the first rank says of its model."""
    config = ranks[0].start.get("model_config")
    shape = flops.shape_of(config) if config else None
    training = flops.training_of(recipe) if recipe else None
    is_eager = recipe is not None and recipe["model"].get("attn_implementation") == "eager"
    computed = flops.Savings(causal=False, window=False, packing=False) if is_eager else flops.Savings()

    def count(samples: Sequence[Sample]) -> tuple[float | None, float | None]:
        if not shape or not training or not all(sample.rows for sample in samples):
            return None, None
        rows: list[Any] = []
        patches: list[Any] = []
        for sample in samples:
            rows += sample.rows
            patches += sample.patches
        sequences = flops.Sequences.of(rows, patches)  # of all ranks at once: there may be a thousand
        model = flops.model_flops(shape, training, sequences)
        return model, flops.hardware_flops(shape, training, sequences, computed)

    return count


def _step_record(
    step: int,
    ranks: Sequence[RankSamples],
    samples: Sequence[Sample],
    numbers: Floats,
    count_flops: _CountFlops,
    *,
    is_warmup: bool,
) -> StepRecord:
    times, data_waits, begins = numbers[:, 0], numbers[:, 1], numbers[:, len(_NUMBERS)]
    slowest = int(times.argmax())
    first, last = _parsed(samples[0]), _parsed(samples[slowest])
    # Ranks that share their samples, as tensor-parallel ones do, count them once.
    data_ranks = list({rank.start["data_rank"]: index for index, rank in enumerate(ranks)}.values())
    padded_tokens, real_tokens, label_tokens, num_images = map(int, numbers[data_ranks, 2:6].sum(axis=0))
    model_flops, hardware_flops = count_flops([samples[index] for index in data_ranks])
    return StepRecord(
        step=step,
        step_time_s=float(times[slowest]),
        rank_step_time_s=tuple(times.tolist()),
        rank_begin_s=None if np.isnan(begins).any() else tuple(begins.tolist()),
        data_wait_s=float(data_waits.max()),
        phases_s=last.get("phases_s"),
        micro_batches_s=last.get("micro_batches_s"),
        padded_tokens=padded_tokens,
        real_tokens=real_tokens,
        label_tokens=label_tokens,
        num_images=num_images,
        model_flops=model_flops,
        hardware_flops=hardware_flops,
        engine_tokens=first.get("engine_tokens"),
        engine_tokens_per_s_per_gpu=first.get("engine_tokens_per_s_per_gpu"),
        loss=first.get("loss"),
        is_warmup=is_warmup or bool(first.get("is_settling")),
        is_tolled=first.get("is_tolled"),
        arm=first.get("arm"),
        block=first.get("block"),
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
    peak = peak_flops(gpu_name) if gpu_name else None
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


def of_the_ranks(summary: Summary, steps: Sequence[StepRecord], reduced: Reduced) -> Summary:
    """`summary` of `steps` with what only the ranks' samples say: their memory, and which of them the others wait
    for."""
    memory = _memory_gib(reduced.ranks)
    lasts = [reduced.lasts[step.step] for step in steps if step.step >= summary.steady_state.first_step]
    known = [last for last in lasts if last]
    return dataclasses.replace(
        summary,
        peak_memory_gib=max(memory["allocated"]) if memory else None,
        rank_peak_memory_gib=memory,
        straggler=find_straggler(known, len(reduced.ranks)) if len(known) == len(lasts) else None,
    )


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
