"""A run's steps under one mode, reduced anew from the record: what it reached, and whether it was steady.

A run with CC off or on is one arm. An emulated run holds two, taken in blocks by turns: its plain steps, which are its
own CC off, and its tolled ones. Statistics stored in the record are not used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cctrain import ratios, stats
from cctrain.load import Floats, Ints, Run

_UNSOUND = "a clock stood still or went backwards, or a step has no tokens"


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """Times are seconds, rates padded tokens/s/GPU, over the steady steps."""

    run: Run
    mode: str
    """off, on, emulated or unknown; off for the plain steps of an emulated run."""
    label: str
    measured: Ints
    """Indices into the run's steps: those of this arm that are no warm-up."""
    steady: Ints
    """Those of them after what MSER-5 sets aside."""
    shift: int | None
    """The recipe's number of the step at which the level changed for good."""
    why_unsteady: str | None
    """None where the arm is steady."""
    step_time_s: float
    """Median."""
    tokens_per_s_per_gpu: float
    """Median of the steps' rates: the run's figure."""
    mean_tokens_per_s_per_gpu: float
    """Total tokens over the time of the rank that took longest for all steps."""
    useful: float
    """Real tokens over padded ones, of all steady steps."""
    half_width: float | None
    """Of the 95 % interval of total tokens over total time from the noise within this run, relative to it."""
    tokens_per_step: float
    flops_per_token: float
    """Of the model, a padded token; NaN where the record does not say."""
    phases_s: Mapping[str, float]
    """Mean a step."""

    @property
    def is_sound(self) -> bool:
        """Whether every clock went forward and tokens were counted, so that there is a rate at all."""
        return self.tokens_per_s_per_gpu > 0 and math.isfinite(self.tokens_per_s_per_gpu)


def arms_of(run: Run) -> tuple[Arm, ...]:
    """The plain and the tolled arm of an emulated run, the one arm of any other."""
    steps = run.steps
    if run.mode != "emulated":
        return (_arm(run, run.mode, run.mode, np.flatnonzero(~steps.is_warmup)),)
    plain, tolled = (np.flatnonzero(~steps.is_warmup & (steps.arm == arm)) for arm in (0, 1))
    return (
        _arm(run, "off", f"plain steps of emulated {run.profile}", plain),
        _arm(run, "emulated", f"emulated {run.profile}", tolled),
    )


def _arm(run: Run, mode: str, label: str, measured: Ints) -> Arm:
    steps = run.steps
    times = steps.step_time_s[measured]
    ranks, padded = steps.rank_step_time_s[measured], steps.padded_tokens[measured]
    went_back = any(np.any(spans[measured] < 0) for spans in steps.phases_s.values())
    is_sound = bool(len(measured) and np.all(times > 0) and np.all(ranks > 0) and np.all(padded > 0) and not went_back)
    found = stats.find_steady(times.tolist()) if is_sound else stats.Steady(0, None, is_settling=True)
    steady = measured[found.cut :]
    tokens = steps.padded_tokens[steady] / run.num_gpus
    seconds = float(steps.rank_step_time_s[steady].sum(axis=0).max()) if is_sound else math.nan
    half = _relative_half_width(tokens, steps.rank_step_time_s[steady]) if is_sound else None
    return Arm(
        run=run,
        mode=mode,
        label=label,
        measured=measured,
        steady=steady,
        shift=int(steps.step[measured[found.shift.index]]) if found.shift else None,
        why_unsteady=_why_unsteady(run, measured, found, is_sound=is_sound),
        step_time_s=float(np.median(steps.step_time_s[steady])) if is_sound else math.nan,
        tokens_per_s_per_gpu=float(np.median(tokens / steps.step_time_s[steady])) if is_sound else math.nan,
        mean_tokens_per_s_per_gpu=float(tokens.sum() / seconds) if is_sound else math.nan,
        useful=float(steps.real_tokens[steady].sum() / steps.padded_tokens[steady].sum()) if is_sound else math.nan,
        half_width=half,
        tokens_per_step=float(np.median(steps.padded_tokens[steady])) if is_sound else math.nan,
        flops_per_token=float(steps.model_flops[steady].sum() / steps.padded_tokens[steady].sum())
        if is_sound
        else math.nan,
        phases_s=_phases(steps.phases_s, steady),
    )


def _relative_half_width(tokens: Floats, rank_times: Floats) -> float | None:
    """By the times of the rank that took longest for all steps, as the rate; maxima of single steps add up to more."""
    times = rank_times[:, rank_times.sum(axis=0).argmax()]
    rate = float(tokens.sum() / times.sum())
    half = stats.rate_half_width(tokens.tolist(), times.tolist(), rate)
    return half / rate if half is not None and rate > 0 else None


def has_unequal_steps(arm: Arm) -> bool:
    """Whether its steps differ in their tokens."""
    return bool(np.ptp(arm.run.steps.padded_tokens[arm.steady]) > 0)


def _why_unsteady(run: Run, measured: Ints, found: stats.Steady, *, is_sound: bool) -> str | None:
    if not len(measured):
        return "no step was measured"
    return found.why_not(run.steps.step[measured].tolist()) if is_sound else _UNSOUND


def _phases(phases_s: Mapping[str, Floats], steady: Ints) -> dict[str, float]:
    known = {name: values[steady] for name, values in phases_s.items()}
    known = {name: values[np.isfinite(values)] for name, values in known.items()}
    return {name: float(values.sum() / len(steady)) for name, values in known.items() if len(values)}


@dataclass(frozen=True, slots=True)
class Block:
    """An arm's measured steps of one round, by the time of the rank that took longest for them."""

    tokens_per_s_per_gpu: float
    step_s: float
    """Of one of its steps, on average."""


def paired_blocks(plain: Arm, tolled: Arm) -> list[tuple[Block, Block]]:
    """An emulated run's own arms, in every whole round whose two blocks are steady throughout, as of the run's own keep
    ratio (`emulation.rounds.whole_rounds`)."""
    blocks = [_by_round(arm) for arm in (plain, tolled)]
    rounds = sorted(blocks[0].keys() & blocks[1].keys())  # what is set aside may end within one
    return [(blocks[0][one], blocks[1][one]) for one in rounds]


def added_s(pairs: Sequence[tuple[Block, Block]]) -> list[float]:
    """Seconds that a tolled step takes longer than a plain one in each of `pairs`, at the plain one's tokens."""
    return [own.step_s * (own.tokens_per_s_per_gpu / block.tokens_per_s_per_gpu - 1) for own, block in pairs]


def block_ratio_error(plain: Arm, tolled: Arm) -> float | None:
    """Half-width of the 95 % t interval of the log ratio of an emulated run's own arms, the replicate being a pair of
    blocks of one round; None below two pairs."""
    pairs = paired_blocks(plain, tolled)
    logs = [math.log(other.tokens_per_s_per_gpu / base.tokens_per_s_per_gpu) for base, other in pairs]
    return float(ratios.paired(np.array(logs))[1]) if len(logs) > 1 else None


def _by_round(arm: Arm) -> dict[int, Block]:
    steps, blocks = arm.run.steps, {}
    rounds = steps.round[arm.measured]
    for one in np.unique(rounds[rounds >= 0]):
        block = arm.measured[rounds == one]
        if block[0] >= arm.steady[0]:
            seconds = float(steps.rank_step_time_s[block].sum(axis=0).max())
            rate = float(steps.padded_tokens[block].sum() / arm.run.num_gpus / seconds)
            blocks[int(one)] = Block(rate, seconds / len(block))
    return blocks
