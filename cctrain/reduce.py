"""Samples of all ranks to the steps and the summary of the record.

Ranks write what they saw; nothing is reduced while training. A step counts when every rank finished it, so that a
crash leaves whole steps only.
"""

from __future__ import annotations

import dataclasses
import gc
import statistics
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from cctrain import stats
from cctrain.peaks import peak_flops
from cctrain.records import Estimate, SteadyState, StepRecord, Summary
from cctrain.samples import lines_of_ranks, parse_line, step_of
from cctrain.stats import Floats
from cctrain.straggler import Last, find_straggler, last_rank

_GIB = 2**30
_AT_ONCE = 32
"""Lines of a rank that are taken before the next rank's."""
_COUNTS, _FLOPS = ("padded_tokens", "real_tokens", "label_tokens", "num_images"), ("model_flops", "hardware_flops")
_NUMBERS, _MORE_NUMBERS = ("step_time_s", "data_wait_s", *_COUNTS), ("begin_s", *_FLOPS)
"""What a rank writes of a step, and what it need not have."""


@dataclass(frozen=True, slots=True)
class RankSamples:
    """What one rank wrote: who it is, its steps and, unless it died, its last line."""

    start: dict[str, Any]
    """Its `start` line with its `ready` line, which adds `data_rank` and the clock's name."""
    steps: dict[int, bytes]
    """Their lines."""
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


def reduce_samples(run_dir: Path, reduction: Reduction) -> Reduced:
    """Have `reduction` take in the samples of every rank that wrote any, side by side. A last line cut short by a crash
    is left out."""
    files = lines_of_ranks(run_dir)
    while taken := [(number, list(islice(lines, _AT_ONCE))) for number, lines in files.items()]:
        for number, lines in taken:
            reduction.take(number, lines)
        reduction.advance()
        files = {number: files[number] for number, lines in taken if lines}
    return reduction.reduced()


class Reduction:
    """The samples of a run's ranks, taken in as they come."""

    def __init__(self, warmup: int) -> None:
        """As `Samples`."""
        self.steps: list[StepRecord] = []
        """Those that all ranks had finished at the last `advance`, oldest first."""
        self._samples = Samples(warmup)
        self._lasts: dict[int, Last | None] = {}
        self._crossings: dict[int, dict[int, Any]] = defaultdict(dict)

    def take(self, number: int, lines: Iterable[bytes]) -> None:
        """Further lines of rank `number`."""
        self._samples.take(number, lines)

    def advance(self) -> None:
        """Let go of the lines of steps that all ranks have finished, for what is kept of them."""
        is_collecting = gc.isenabled()
        gc.disable()  # there are no cycles here, and walking millions of parsed numbers takes as long as parsing them
        try:
            for step, last, crossed in self._samples.finished():
                self.steps.append(step)
                self._lasts[step.step] = last
                for number, counts in crossed.items():
                    self._crossings[number][step.step] = counts
        finally:
            if is_collecting:
                gc.enable()

    def reduced(self) -> Reduced:
        """What the ranks wrote so far."""
        ranks = dict(sorted(self._samples.ranks.items()))
        return Reduced(ranks, tuple(self.steps), self._lasts, [self._crossings[number] for number in ranks])


class Samples:
    """What the ranks have written so far, without the steps that all of them finished and that were taken out."""

    def __init__(self, warmup: int) -> None:
        """The first `warmup` steps are warm-up."""
        self.ranks: dict[int, RankSamples] = {}
        self._warmup = warmup

    def take(self, number: int, lines: Iterable[bytes]) -> None:
        """Sort lines of rank `number` by what they say. Those before it said that it started are nobody's.

        The line of a step waits for those of the other ranks, not parsed: a parsed one is several times as large, and
        no cache holds those of a thousand ranks.
        """
        for line in lines:
            step = step_of(line)
            if step is None:
                self._take_parsed(number, parse_line(line) or {}, line)
            elif number in self.ranks:
                self.ranks[number].steps[step] = line

    def _take_parsed(self, number: int, parsed: dict[str, Any], line: bytes) -> None:
        event = parsed.get("event")
        if event == "start":
            self.ranks[number] = RankSamples(parsed, {}, None)
        elif number not in self.ranks:
            return
        elif "step" in parsed:
            self.ranks[number].steps[int(parsed["step"])] = line
        elif event == "ready":
            self.ranks[number].start.update(parsed)
        elif event in ("end", "error"):
            self.ranks[number] = dataclasses.replace(self.ranks[number], end=parsed)

    def finished(self) -> Iterator[tuple[StepRecord, Last | None, dict[int, Any]]]:
        """Take out the steps that every rank has finished since the last call, oldest first.

        With each, which rank was last, and the crossings of all where the first counted its own.
        """
        ranks = self.ranks
        if not ranks or len(ranks) < next(iter(ranks.values())).start["world_size"]:
            return
        finished = set.intersection(*(set(rank.steps) for rank in ranks.values()))
        if not finished:
            return
        numbers = sorted(ranks)
        ordered = [ranks[number] for number in numbers]
        is_one_clock = len({rank.start.get("host") for rank in ordered}) == 1
        # Ranks that share their samples, as tensor-parallel ones do, count them once.
        counted = list({rank.start["data_rank"]: index for index, rank in enumerate(ordered)}.values())
        for step in sorted(finished):
            lines = [rank.steps.pop(step) for rank in ordered]
            joined = _joined(lines)
            if joined is None:  # the ranks that did write it have finished a step that not all have
                for rank, line in zip(ordered, lines, strict=True):
                    if parse_line(line) is not None:
                        rank.steps[step] = line
                continue
            record = _step_record(step, joined, counted, is_warmup=self._warmup > 0)
            self._warmup -= 1
            last = last_rank(joined.phases, joined.spans_s, record.rank_begin_s if is_one_clock else None)
            yield record, last, dict(zip(numbers, joined.crossings, strict=False))


@dataclass(frozen=True, slots=True)
class _Joined:
    """One step of all ranks, in their order."""

    first: dict[str, Any]
    """What the first rank wrote."""
    slowest: dict[str, Any]
    numbers: dict[str, Floats]
    """Of each rank, those of _NUMBERS and what the first rank wrote of _MORE_NUMBERS."""
    phases: list[str]
    spans_s: Floats
    """(ranks, phases), in the order in which they ran."""
    crossings: list[Any]
    """Empty where the first rank counted none."""


def _joined(lines: Sequence[bytes], more: Sequence[str] = _MORE_NUMBERS) -> _Joined | None:
    """Parse the `lines` of one step and keep of each what is needed of all, and those of `more` that all have; None
    where one is damaged."""
    first = parse_line(lines[0]) or {}
    names = [*_NUMBERS, *(name for name in more if name in first)]
    numbers_of, has_crossings = itemgetter(*names), "crossings" in first
    numbers: list[float] = []
    spans_s: list[tuple[float, ...]] = []
    crossings: list[Any] = []
    for line in lines:
        sample = parse_line(line)
        if sample is None:
            return None
        try:
            numbers += numbers_of(sample)
        except KeyError:
            if any(name not in sample for name in _NUMBERS):
                raise
            return _joined(lines, [name for name in more if name in sample])
        spans_s.append(tuple((sample.get("phases_s") or {}).values()))
        if has_crossings:
            crossings.append(sample.get("crossings"))
    table, width = _by_rank(numbers, len(lines)).T, min(map(len, spans_s))
    return _Joined(
        first=first,
        slowest=parse_line(lines[int(table[0].argmax())]) or {},
        numbers=dict(zip(names, table, strict=True)),
        phases=list(first.get("phases_s") or ()),
        spans_s=_by_rank(chain.from_iterable(spans[:width] for spans in spans_s), len(lines)),
        crossings=crossings,
    )


def _by_rank(values: Iterable[float], num_ranks: int) -> Floats:
    return np.array(array("d", values)).reshape(num_ranks, -1)  # an array takes half as long to make as NumPy's


def _step_record(step: int, joined: _Joined, counted: Sequence[int], *, is_warmup: bool) -> StepRecord:
    first, slowest, numbers = joined.first, joined.slowest, joined.numbers
    times, begins = numbers["step_time_s"], numbers.get("begin_s")
    sums = {name: values[counted].sum() for name, values in numbers.items()}
    padded_tokens, real_tokens, label_tokens, num_images = (int(sums[name]) for name in _COUNTS)
    model_flops, hardware_flops = (float(sums[name]) if name in sums else None for name in _FLOPS)
    return StepRecord(
        step=step,
        step_time_s=float(times.max()),
        rank_step_time_s=tuple(times.tolist()),
        rank_begin_s=None if begins is None else tuple(begins.tolist()),
        data_wait_s=float(numbers["data_wait_s"].max()),
        phases_s=slowest.get("phases_s"),
        micro_batches_s=slowest.get("micro_batches_s"),
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
            ci95=_around(rate, stats.rate_half_width([step.padded_tokens / world for step in steady], times, rate)),
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
    lasts = [reduced.lasts[step.step] for step in summary.steady_state.of(steps)]
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
    why_not = found.why_not([step.step for step in measured])
    if why_not:
        may_be_warmup = found.is_settling and not found.shift and num_steps >= stats.MIN_STEPS
        why = f"not steady, because {why_not}" + "; raise measure.warmup if it is warm-up" * may_be_warmup
    else:
        before = "warm-up and settling" if measured[0].arm else f"{measured[0].step - 1} of warm-up"
        why = f"steady from step {first}: {before}, {found.cut or 'no'} more by MSER-5"
        if num_steps < stats.MIN_STEPS_OF_A_CHANGE:
            why += f"; {num_steps} steps are too few to find a change of level in"
    return SteadyState(first_step=first, num_steps=num_steps, is_steady=not why_not, why=why)
