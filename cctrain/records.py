"""The record of a run, `run.json`: frozen dataclasses and strict JSON (a NaN is null).

History of the format:
  1  first version: mode, identity, platform, steps, summary
  2  steps: begin of each rank, micro-batches, FLOPs, what the engine itself says; summary: MFU, HFU, energy, memory of
     each rank, straggler, seed; gpu_state
  3  emulated runs: is_tolled, arm and block of a step; tolls, summary_off, keep_ratio, explain; crossings; graphs;
     later ones of 3: keep_ratio.added_s

Times are seconds. Tokens of a step are sums over data-parallel ranks, so that tensor- and pipeline-parallel ranks,
which see the same samples, count them once.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

SCHEMA_VERSION = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """One optimizer step over all ranks."""

    step: int
    """1-based, as the recipe counts it."""
    step_time_s: float
    """Of the slowest rank: a step ends when its last rank ends."""
    rank_step_time_s: tuple[float, ...]
    rank_begin_s: tuple[float, ...] | None = None
    """Unix time at which each rank began the step (its GPU's clock, set by the host's once at the start)."""
    data_wait_s: float
    """Host time blocked on the dataloader inside step_time_s, of the rank that waited longest."""
    phases_s: dict[str, float] | None
    """data_wait, forward, backward, optimizer (clipping, schedule and loss readback included) and other, of the slowest
    rank; those of every rank are in samples/."""
    micro_batches_s: dict[str, list[float]] | None = None
    """The parts of the phases that came several times in the step, in their order."""
    padded_tokens: int
    """What the GPUs compute, padding included."""
    real_tokens: int
    """Without padding."""
    label_tokens: int
    """Those that a loss is taken on."""
    num_images: int
    model_flops: float | None = None
    """What the real tokens and patches need, all GPUs together; null for an unknown architecture. See flops.py."""
    hardware_flops: float | None = None
    """The same with padding and recomputation."""
    engine_tokens: int | None = None
    """What the engine itself counts as the step's tokens."""
    engine_tokens_per_s_per_gpu: float | None = None
    """What the engine itself prints for the step, by its own clock and count."""
    loss: float | None
    """null where it was not a number."""
    is_warmup: bool
    """Not measured: of the run's warm-up, or one of a block's first steps."""
    is_tolled: bool | None = None
    """In emulated runs, whether all of the profile's tolls were paid; null in others, and where a part of them was."""
    arm: str | None = None
    """In emulated runs, which tolls were paid: off, all, or in `explain` "only CLASS" or "without CLASS"."""
    block: int | None = None
    """In emulated runs, the block of steps under one arm that it belongs to, from 0; null in the warm-up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepRatio:
    """Throughput with all tolls over throughput with none, in one emulated run."""

    value: float
    """Geometric mean of the block pairs' ratios of padded tokens/s."""
    ci95: tuple[float, float] | None
    """95 % t interval of it in logarithms, the replicate being the pair of blocks; null below two."""
    num_pairs: int
    added_s: float
    """What a plain step takes longer with all tolls, at its own number of tokens, mean over the pairs. It depends less
    on how fast the machine is than the ratio, which moves with the plain step."""
    added_ci95: tuple[float, float] | None
    """95 % t interval of it; null below two pairs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A quantity over the steady steps."""

    median: float | None
    mean: float | None
    """Total over total: for a rate, tokens of all steps over the time that the slowest rank took for them all."""
    ci95: tuple[float, float] | None
    """95 % interval of the mean from within-run noise; null where there are too few steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SteadyState:
    """Which steps the summary is over."""

    first_step: int
    num_steps: int
    is_steady: bool
    why: str
    """One sentence: how the first step was chosen, or why the run is not steady."""

    def of(self, steps: Sequence[StepRecord]) -> list[StepRecord]:
        """Those of `steps` that the summary is over: of an emulated run not the first of a block, which settle."""
        return [step for step in steps if not step.is_warmup and step.step >= self.first_step]


@dataclass(frozen=True, slots=True, kw_only=True)
class Straggler:
    """The rank that is last more often than chance allows."""

    rank: int
    share: float
    """Fraction of the steady steps in which this rank was the last."""
    cost_s: float
    """Mean time per step that the next slowest rank waited for it."""
    phase: str
    """The phase in which it most often fell behind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seed:
    """The seed post's figure beside ours."""

    tokens_per_s_per_gpu: float
    """Median of what the engine printed from its step 10 on."""
    first_step: int
    num_steps: int
    engine_version: str | None
    over_ours: float
    """It over our mean of padded tokens/s/GPU."""
    why: str
    """One sentence: where the difference comes from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What the run reached."""

    step_time_s: Estimate
    tokens_per_s_per_gpu: Estimate
    """Padded tokens."""
    real_tokens_per_s_per_gpu: float | None
    label_tokens_per_s_per_gpu: float | None
    first_loss: float | None
    last_loss: float | None
    peak_memory_gib: float | None = None
    """Largest of the ranks, allocated by torch; null on CPU or where a rank ended early."""
    rank_peak_memory_gib: dict[str, list[float]] | None = None
    """Of each rank, `allocated` by torch and `reserved` from the driver."""
    mfu: float | None
    """Model FLOPs utilization, 0 to 1: model_flops over time and the datasheet's dense BF16 peak; null where either is
    unknown."""
    hfu: float | None = None
    """The same of hardware_flops."""
    peak_flops_per_s: float | None = None
    """The datasheet's peak of one GPU that mfu and hfu are relative to."""
    joules_per_token: float | None = None
    """Energy of the ranks' GPUs over the steady steps, by the driver's counters, per real token."""
    straggler: Straggler | None = None
    steady_state: SteadyState
    seed: Seed | None = None
    """With measure=seed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """One run."""

    run_id: str
    recipe: str
    engine: str
    step_kind: str
    mode: str
    """off, on, or unknown: what the machine was seen to be, not what was asked for; emulated: tolls were injected."""
    status: str
    """complete, or partial: ended early, or still running."""
    failure: str | None
    identity: dict[str, Any]
    platform: dict[str, Any]
    command: tuple[str, ...]
    started_at: str
    ended_at: str | None
    notes: tuple[str, ...]
    steps: tuple[StepRecord, ...]
    summary: Summary | None
    gpu_state: dict[str, Any] | None = None
    """Clocks, temperature, power and throttle reasons over the steady steps; null without GPUs."""
    crossings: dict[str, Any] | None = None
    """Mean per plain steady step, on the rank that launched most: `counted_by` and the counts; null where not asked."""
    tolls: dict[str, Any] | None = None
    """In emulated runs, the profile: `name`, `sha256` of its content, and the content."""
    summary_off: Summary | None = None
    """In emulated runs, of the plain steps; `summary` is then of the tolled ones."""
    keep_ratio: KeepRatio | None = None
    explain: dict[str, Any] | None = None
    """With the verb explain: what each class of tolls costs."""
    graphs: dict[str, Any] | None = None
    """With step=graphed or auto: `why` the step is what step_kind says and, of the first rank, what was recorded."""
    schema_version: int = SCHEMA_VERSION


def summed_up(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of a record as it was read, with a summary: the steps that its `summary` is over, as `SteadyState.of` has them;
    of an emulated run tolled ones."""
    first = record["summary"]["steady_state"]["first_step"]
    return [
        step
        for step in record["steps"]
        if step["step"] >= first and not step["is_warmup"] and step["arm"] in (None, "all")
    ]


def to_json(record: Any) -> str:
    """Strict JSON of a record: no NaN, no infinity, all on one line."""
    return strict_json(dataclasses.asdict(record))


def strict_json(content: Any) -> str:
    """The same of what a record comes to."""
    try:
        return orjson.dumps(content).decode() + "\n"  # ten times as fast as json; of a NaN it makes a null by itself
    except TypeError:  # what only json knows: an integer of more than 64 bits, text that is no Unicode
        return json.dumps(finite(content), allow_nan=False, separators=(",", ":")) + "\n"


def finite(node: Any) -> Any:
    """The same tree with every NaN and infinity replaced by None."""
    if isinstance(node, float):
        return node if math.isfinite(node) else None
    if isinstance(node, dict):
        return {key: finite(value) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [finite(value) for value in node]
    return node
