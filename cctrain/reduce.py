"""Samples of all ranks to the steps and the summary of the record.

Ranks write what they saw; nothing is reduced while training. A step counts when every rank finished it, so that a
crash leaves whole steps only.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cctrain import stats
from cctrain.records import Estimate, SteadyState, StepRecord, Summary
from cctrain.samples import parse_line

_GIB = 2**30


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
    for path in sorted((run_dir / "samples").glob("rank*.jsonl")):
        lines = [parsed for parsed in map(parse_line, path.read_text(encoding="utf-8").splitlines()) if parsed]
        if lines and lines[0].get("event") == "start":
            ranks[int(lines[0]["rank"])] = rank_samples(lines)
    return ranks


def rank_samples(lines: Sequence[dict[str, Any]]) -> RankSamples:
    """Sort the lines of one rank by what they say."""
    steps = {int(line["step"]): line for line in lines if "step" in line}
    end = next((line for line in reversed(lines) if line.get("event") in ("end", "error")), None)
    ready = next((line for line in lines if line.get("event") == "ready"), {})
    return RankSamples({**lines[0], **ready}, steps, end)


def step_records(ranks: Mapping[int, RankSamples], warmup: int) -> tuple[StepRecord, ...]:
    """The steps that every rank finished, oldest first; the first `warmup` of them are warm-up."""
    if not ranks or len(ranks) < next(iter(ranks.values())).start["world_size"]:
        return ()
    finished = set.intersection(*(set(rank.steps) for rank in ranks.values()))
    return tuple(
        _step_record(step, [ranks[rank] for rank in sorted(ranks)], is_warmup=index < warmup)
        for index, step in enumerate(sorted(finished))
    )


def _step_record(step: int, ranks: Sequence[RankSamples], *, is_warmup: bool) -> StepRecord:
    rows = [rank.steps[step] for rank in ranks]
    times = [float(row["step_time_s"]) for row in rows]
    slowest = max(range(len(rows)), key=times.__getitem__)
    data_rows = {rank.start["data_rank"]: row for rank, row in zip(ranks, rows, strict=True)}.values()
    return StepRecord(
        step=step,
        step_time_s=times[slowest],
        rank_step_time_s=tuple(times),
        data_wait_s=max(float(row["data_wait_s"]) for row in rows),
        phases_s=rows[slowest].get("phases_s"),
        padded_tokens=sum(row["padded_tokens"] for row in data_rows),
        real_tokens=sum(row["real_tokens"] for row in data_rows),
        label_tokens=sum(row["label_tokens"] for row in data_rows),
        num_images=sum(row["num_images"] for row in data_rows),
        loss=rows[0].get("loss"),
        is_warmup=is_warmup,
    )


def summarize(steps: Sequence[StepRecord], ranks: Mapping[int, RankSamples]) -> Summary | None:
    """What the measured steps reached; None where there are none, or a clock that stood still."""
    measured = [step for step in steps if not step.is_warmup]
    if not measured or not all(step.step_time_s > 0 for step in measured):
        return None
    found = stats.find_steady([step.step_time_s for step in measured])
    steady = measured[found.cut :]
    world = len(ranks)
    seconds = sum(step.step_time_s for step in steady)
    interval = stats.batch_means([step.step_time_s for step in steady])
    padded = sum(step.padded_tokens for step in steady)
    rate = padded / seconds / world
    peaks = [rank.end.get("peak_allocated_bytes") if rank.end else None for rank in ranks.values()]
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
            # The rate's relative uncertainty is the step time's, as long as the tokens of a step do not vary with it.
            ci95=_around(rate, interval.half_width and rate * interval.half_width / interval.mean),
        ),
        real_tokens_per_s_per_gpu=sum(step.real_tokens for step in steady) / seconds / world,
        label_tokens_per_s_per_gpu=sum(step.label_tokens for step in steady) / seconds / world,
        first_loss=losses[0],
        last_loss=losses[-1],
        peak_memory_gib=max(p for p in peaks if p is not None) / _GIB if all(p is not None for p in peaks) else None,
        mfu=None,
        joules_per_token=None,
        steady_state=_steady_state(measured, found),
    )


def _around(mean: float, half_width: float | None) -> tuple[float, float] | None:
    return None if half_width is None else (mean - half_width, mean + half_width)


def _steady_state(measured: Sequence[StepRecord], found: stats.Steady) -> SteadyState:
    first, num_steps = measured[found.cut].step, len(measured) - found.cut
    if num_steps < stats.MIN_STEPS:
        why = f"not steady, because only {num_steps} steps were measured and {stats.MIN_STEPS} are needed"
    elif found.shift:
        step = measured[found.shift.index].step
        why = f"not steady, because step times changed by {found.shift.change:+.1%} at step {step} and stayed there"
    elif found.is_settling:
        why = f"not steady, because step times still settle after {found.cut} measured steps; raise measure.warmup"
    else:
        why = f"steady from step {first}: {measured[0].step - 1} of warm-up, {found.cut or 'no'} more by MSER-5"
    return SteadyState(first_step=first, num_steps=num_steps, is_steady=why.startswith("steady"), why=why)
