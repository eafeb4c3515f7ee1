"""Runs to comparisons: by which pairing, how much is kept, and what can be said of it.

Runs are paired where they were interleaved, which their starting times tell: taken in order, every two successive runs
are one of each. The arms of an emulated run are a pair by themselves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from cctrain import ratios
from cctrain.comparison import comparable
from cctrain.comparison.arms import Arm, added_s, block_ratio_error, has_unequal_steps, paired_blocks
from cctrain.comparison.comparable import Objection, of_cpus, of_machines, of_unlike_code
from cctrain.comparison.groups import Options, Plan, planned
from cctrain.errors import RequestError
from cctrain.load import Run

_MOST_NOTES = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two groups of arms of one recipe, and what is kept of the first one's throughput in the second."""

    recipe: str
    setting: str
    """Of both groups, as told apart by `by`; empty where nothing was asked for."""
    base: str
    other: str
    """What the groups are: a mode, or a setting where the mode is the same."""
    mode: str
    """Of `other`: emulated figures are never those of CC on."""
    base_arms: tuple[Arm, ...]
    other_arms: tuple[Arm, ...]
    pairing: str
    """same run, interleaved, or none: how replicates were paired."""
    keep_ratio: float
    """Other over base, of the runs' medians of padded tokens/s/GPU, of real ones between steps or engines; of an
    emulated run against itself, of the geometric means over its pairs of blocks, as the run's own."""
    base_rates: tuple[float, ...]
    other_rates: tuple[float, ...]
    """What the ratio is of, run by run."""
    added_s: tuple[float, ...]
    """What the tolls add to a step, run by run, of emulated runs against themselves; empty of others."""
    ci95: tuple[float, float] | None
    """None below two runs of each."""
    error_in_common: float | None
    """Half-width of a 95 % interval of the log ratio for what runs do not differ in, which is in `ci95`: emulated runs
    see the same samples at the same steps, and so have the same longer ones in the same arm. None where steps are
    alike."""
    within_run_ci95: tuple[float, float] | None
    """From the noise within the runs, where there is no `ci95`: it does not know how runs differ from each other."""
    keep_ratio_of_means: float
    """The same of total tokens over total time, which slow single steps move and medians do not."""
    verdict: str
    more: ratios.MoreRuns | None
    """Where it is unclear."""

    @property
    def num_runs(self) -> int:
        """Different runs in both groups."""
        return len({arm.run.run_id for arm in (*self.base_arms, *self.other_arms)})

    @property
    def is_emulated(self) -> bool:
        """Whether either side holds tolled steps."""
        return any(arm.mode == "emulated" for arm in (*self.base_arms, *self.other_arms))

    @property
    def is_of_settings(self) -> bool:
        """Whether both sides ran in the same mode, and the step or the engine differs."""
        return self.base_arms[0].mode == self.other_arms[0].mode

    @property
    def is_of_cc(self) -> bool:
        """Whether it says what CC costs, or is estimated to."""
        return not self.is_of_settings and self.base != "on"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """All comparisons that the runs allow."""

    comparisons: tuple[Comparison, ...]
    objections: tuple[Objection, ...]
    """What spoke against comparing and was allowed."""
    notes: tuple[str, ...]
    """What is left over, and what the records themselves note."""
    options: Options
    runs: tuple[Run, ...] = field(repr=False)

    @property
    def worst(self) -> Comparison:
        """The comparison that keeps least: of what CC costs, where there is any, and measured, where there is any."""
        return min(self.comparisons, key=lambda each: (not each.is_of_cc, each.is_emulated, each.keep_ratio))


def compare(runs: Sequence[Run], options: Options) -> Answer:
    """Raises RefusedError naming everything that speaks against comparing, RequestError where nothing can be."""
    comparable.check_names(options.allow, runs)
    runs, left_out = comparable.kept(runs, options.leave_out)
    plans, notes = planned(runs, options)
    objections: list[Objection] = []
    for plan in plans:
        arms = (*plan.base_arms, *plan.other_arms)
        objections += comparable.whole_and_steady(arms)
        unlike = comparable.alike([arm.run for arm in arms])
        objections += (one for one in unlike if one.field not in plan.differing)
        for side in (plan.base_arms, plan.other_arms):
            within = comparable.alike([arm.run for arm in side])
            objections += (one for one in within if one.field in plan.differing)
        if plan.is_same_run:
            objections += comparable.paired(plan.base_arms, plan.other_arms)
        if plan.is_emulation_against_on:
            objections.append(Objection("mode", "emulated runs stand against runs with CC on"))
    allowed = comparable.judge(objections, options.allow)
    for plan in plans:
        for arm in (*plan.base_arms, *plan.other_arms):
            why = None if arm.is_sound else arm.why_unsteady
            if arm.is_sound and plan.differing and not arm.useful > 0:
                why = "no token of its steps is real"
            if why:
                raise RequestError(f"{arm.run.run_id}, {arm.label}: {why}: it has no rate")
    said = dict.fromkeys(note for run in runs for note in run.notes)
    compared = [arm.run for plan in plans for arm in (*plan.base_arms, *plan.other_arms)]
    of_all = (note for find in (of_cpus, of_unlike_code, of_machines) for note in find(compared))
    notes = (*left_out, *notes, *of_all, *list(said)[:_MOST_NOTES])
    found = tuple(_compared(plan, options.margin) for plan in plans)
    return Answer(comparisons=found, objections=allowed, notes=notes, options=options, runs=tuple(runs))


def interleaved(base: Sequence[Arm], other: Sequence[Arm]) -> list[tuple[Arm, Arm]] | None:
    """Pairs of successive runs, where taking all in the order they were started every two are one of each."""
    both = [(arm.run.started_at, side, arm) for side, arms in enumerate((base, other)) for arm in arms]
    times = [time for time, _, _ in both if time is not None]
    if len(base) != len(other) or len(set(times)) < len(both):
        return None
    ordered = sorted(both, key=lambda each: (each[0] is None, each[0]))
    pairs = [(ordered[index], ordered[index + 1]) for index in range(0, len(ordered), 2)]
    if any(left[1] == right[1] for left, right in pairs):
        return None
    return [(left[2], right[2]) if left[1] == 0 else (right[2], left[2]) for left, right in pairs]


def _compared(plan: Plan, margin: float) -> Comparison:
    pairs = None if plan.is_same_run else interleaved(plan.base_arms, plan.other_arms)
    base, other = plan.base_arms, plan.other_arms
    if pairs:
        base, other = (tuple(side) for side in zip(*pairs, strict=True))
    is_paired = plan.is_same_run or pairs is not None
    # Steps and engines pad to lengths of their own: where those are told apart, what counts is real tokens.
    shares = [[arm.useful if plan.differing else 1.0 for arm in arms] for arms in (base, other)]
    own = list(map(_own_figures, base, other)) if plan.is_same_run else []
    figures = [[one.plain for one in own], [one.tolled for one in own]] if own else [_medians(base), _medians(other)]
    rates = _times(figures, shares)
    means = _times([[arm.mean_tokens_per_s_per_gpu for arm in arms] for arms in (base, other)], shares)
    ratio, ci95 = ratios.ratio_of_runs(*rates, is_paired=is_paired)
    in_common = _error_in_common(base, other) if plan.is_same_run else None
    if ci95 and in_common:
        ci95 = ratios.widened(ratio, ci95, in_common)
    verdict = ratios.verdict(ci95, margin)
    error = _within_run_error(base, other, is_same_run=plan.is_same_run)
    more = None
    if verdict == "unclear":
        spread = ratios.spread_of_runs(*rates, is_paired=is_paired)
        more = ratios.more_runs(
            ratio,
            spread,
            min(map(len, rates)),
            margin,
            within_run=(error or 0.0) / 1.96,
            in_common=in_common or 0.0,
        )
    return Comparison(
        recipe=plan.recipe,
        setting=plan.setting,
        base=plan.base,
        other=plan.other,
        mode=other[0].mode,
        base_arms=base,
        other_arms=other,
        pairing="same run" if plan.is_same_run else "interleaved" if pairs else "none",
        keep_ratio=ratio,
        base_rates=tuple(rates[0]),
        other_rates=tuple(rates[1]),
        added_s=tuple(one.added_s for one in own),
        ci95=ci95,
        error_in_common=in_common,
        within_run_ci95=None if ci95 or error is None else (ratio * math.exp(-error), ratio * math.exp(error)),
        keep_ratio_of_means=ratios.ratio_of_runs(*means, is_paired=is_paired)[0],
        verdict=verdict,
        more=more,
    )


def _medians(arms: Sequence[Arm]) -> list[float]:
    return [arm.tokens_per_s_per_gpu for arm in arms]


@dataclass(frozen=True, slots=True)
class _Own:
    """An emulated run against itself."""

    plain: float
    tolled: float
    """Rates, whose ratio is the run's keep ratio."""
    added_s: float


def _own_figures(plain: Arm, tolled: Arm) -> _Own:
    """Medians where no pair of blocks is steady."""
    pairs = paired_blocks(plain, tolled)
    if not pairs:
        rates = plain.tokens_per_s_per_gpu, tolled.tokens_per_s_per_gpu
        return _Own(*rates, added_s=plain.step_time_s * (rates[0] / rates[1] - 1))
    base, other = ([block.tokens_per_s_per_gpu for block in side] for side in zip(*pairs, strict=True))
    return _Own(ratios.geometric_mean(base)[0], ratios.geometric_mean(other)[0], ratios.mean(added_s(pairs))[0])


def _times(rates: Sequence[Sequence[float]], shares: Sequence[Sequence[float]]) -> list[list[float]]:
    return [[rate * share for rate, share in zip(*side, strict=True)] for side in zip(rates, shares, strict=True)]


def _error_in_common(plain: Sequence[Arm], tolled: Sequence[Arm]) -> float | None:
    """What each run's blocks say of it, on average over the runs."""
    if not any(map(has_unequal_steps, (*plain, *tolled))):
        return None
    known = [error for error in map(block_ratio_error, plain, tolled) if error is not None]
    return math.hypot(*known) / math.sqrt(len(known)) if known else None


def _within_run_error(base: Sequence[Arm], other: Sequence[Arm], *, is_same_run: bool) -> float | None:
    """Half-width of a 95 % interval of the log ratio that knows the noise within the runs only."""
    if is_same_run and len(base) == 1:
        by_blocks = block_ratio_error(base[0], other[0])
        if by_blocks is not None:
            return by_blocks
    parts = []
    for arms in (base, other):
        halves = [arm.half_width for arm in arms if arm.half_width is not None]
        if len(halves) < len(arms):
            return None
        parts.append(math.hypot(*halves) / len(arms))
    return math.hypot(*parts)
