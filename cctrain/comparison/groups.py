"""Runs to groups, and which group is held against which.

Runs of one recipe and setting are grouped by mode. CC on is held against CC off; an emulated run against its own plain
steps, because both were taken by turns in one process. Where settings are told apart (stock and graphed steps), each is
also held against the first one of the same mode.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from cctrain import ratios
from cctrain.comparison.arms import Arm, arms_of
from cctrain.comparison.comparable import alike
from cctrain.errors import RequestError
from cctrain.load import Run

_SIDE_BY_SIDE = ("model", "sequence", "batch", "layout")
"""What stands in one table without being held against each other."""
FIELDS = ("step", "engine", "tolls", *_SIDE_BY_SIDE)
"""What `by` tells settings apart by; tolls (the profile of an emulated run) are told apart by anyway."""
_DIFFERING = {
    "step": ("step_kind",),
    "engine": ("engine", *(f"identity.versions.{name}" for name in ("accelerate", "peft", "liger-kernel"))),
}
"""Fields that differ between such settings; an engine has packages that only its records name."""
_BATCH = {"local_batch_size": "micro-batch", "global_batch_size": "global"}
_LAYOUT = ("data", "tensor", "pipeline", "context")
_SIZES = (
    *(("sequence", "seq_len"), ("layout", "world"), ("layout", "tensor")),
    *(("batch", key) for key in _BATCH),
)
"""By which settings stand in a table, each from small to large."""
_STOCK = ("stock", "automodel")
"""What others are held against."""
_WHY_NOT_OFF = (
    ", as emulated runs are held against their own plain steps; compare --against-off-runs holds them against runs "
    "with CC off"
)

Setting = tuple[tuple[str, str], ...]
Cell = tuple[str, Setting]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What is asked of a comparison."""

    by: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()
    leave_out: tuple[str, ...] = ()
    """For what a run is left out: not whole (status), not steady, of unknown mode."""
    margin: float = ratios.MARGIN
    against_off_runs: bool = False
    """Hold emulated runs against runs with CC off instead of their own plain steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Two groups of arms to be compared. See `compare.Comparison` for the names."""

    recipe: str
    setting: str
    base: str
    other: str
    base_arms: tuple[Arm, ...]
    other_arms: tuple[Arm, ...]
    is_same_run: bool = False
    is_emulation_against_on: bool = False
    differing: tuple[str, ...] = ()
    """Fields that are meant to differ."""


@dataclass(frozen=True, slots=True)
class Group:
    """Runs of one recipe, setting and mode."""

    arms: tuple[Arm, ...]
    own_off: tuple[Arm, ...] = ()
    """The plain steps of emulated runs."""


def planned(runs: Sequence[Run], options: Options) -> tuple[list[Plan], tuple[str, ...]]:
    """What is held against what, and notes on what is left over. Raises RequestError where nothing can be compared."""
    groups = _grouped(runs, options)
    plans: list[Plan] = []
    notes: list[str] = []
    for (recipe, setting), modes in groups.items():
        name = ", ".join(value for _, value in setting if value)
        found = list(_by_mode(recipe, name, modes, options))
        plans += found
        held = {arm.run.run_id for plan in found for arm in (*plan.base_arms, *plan.other_arms)}
        alone = [label for label, group in modes.items() if not held & {arm.run.run_id for arm in group.arms}]
        if alone and found:
            num = sum(len(modes[label].arms) for label in alone)
            text = f"in no comparison: {num} run{'s' * (num != 1)} with mode {', '.join(alone)}"
            notes.append(f"{_called(recipe, setting)}: {text}{_WHY_NOT_OFF * ('off' in alone)}")
        notes += _unlike_beside(recipe, setting, modes, found)
    plans += _by_setting(groups)
    held_recipes = {plan.recipe for plan in plans}
    notes += [
        f"nothing to hold {_listed({cell: modes})} against"
        for cell, modes in groups.items()
        if cell[0] not in held_recipes
    ]
    if not plans:
        raise RequestError(
            f"nothing to compare ({_listed(groups)}): of one recipe it takes runs with CC off and on, an emulated run, "
            "or --by step or --by engine with two of them"
        )
    return plans, tuple(notes)


def _unlike_beside(recipe: str, setting: Setting, modes: Mapping[str, Group], plans: Sequence[Plan]) -> Iterator[str]:
    """Rows that stand in one table without being held against each other may differ: a note says in what."""
    if len(plans) > 1:
        fields = [one.field for one in alike([arm.run for group in modes.values() for arm in group.arms])]
        own = {one.field for plan in plans for one in alike([arm.run for arm in (*plan.base_arms, *plan.other_arms)])}
        beside = [field for field in fields if field not in own]
        if beside:
            yield f"{_called(recipe, setting)}: the rows differ among themselves in {', '.join(beside)}"


def _called(recipe: str, setting: Setting) -> str:
    return ", ".join([recipe, *(value for _, value in setting if value)])


def _grouped(runs: Sequence[Run], options: Options) -> dict[Cell, dict[str, Group]]:
    """By recipe and setting, then by mode: off, on, emulated with each profile, unknown."""
    labels = labels_of(runs)
    groups: dict[Cell, dict[str, Group]] = {}
    for run in sorted(runs, key=_order):
        *own_off, arm = arms_of(run)
        label = labels[run.run_id]
        cell = groups.setdefault((run.recipe, tuple((name, setting_of(run, name)) for name in options.by)), {})
        group = cell.get(label, Group(()))
        cell[label] = Group((*group.arms, arm), (*group.own_off, *own_off))
    return groups


def _order(run: Run) -> tuple[object, ...]:
    modes = ("off", "on", "emulated", "unknown")
    return (
        run.recipe,
        run.engine not in _STOCK,
        run.step_kind not in _STOCK,
        *(_number(facts_of(run, part).get(key)) for part, key in _SIZES),
        modes.index(run.mode),
        run.profile,
        run.started_at.timestamp() if run.started_at else math.inf,
        run.run_id,
    )


def labels_of(runs: Sequence[Run]) -> dict[str, str]:
    """By run: the mode, with the profile's name, and its hash where two profiles go by one name."""
    hashes: dict[str, set[str]] = {}
    for run in runs:
        hashes.setdefault(run.profile, set()).add(_hash(run))
    return {
        run.run_id: f"emulated {run.profile}" + f" ({_hash(run)[:8]})" * (len(hashes[run.profile]) > 1)
        if run.mode == "emulated"
        else run.mode
        for run in runs
    }


def _hash(run: Run) -> str:
    return str((run.tolls or {}).get("sha256"))


def facts_of(run: Run, part: str) -> Mapping[str, object]:
    """A part of the run's identity; that of sequences was a number once."""
    facts = run.identity.get(part)
    return facts if isinstance(facts, dict) else {"seq_len": facts}


def _number(value: object) -> float:
    return value if isinstance(value, int | float) else 0


def setting_of(run: Run, name: str) -> str:
    """What `run` has of one of `FIELDS`, for people; empty for tolls."""
    if name == "model":
        return str(run.identity.get("model")).rpartition("/")[2]
    facts = facts_of(run, name)
    if name == "sequence":
        named = ("lengths", "packed")
        rest = [f"{key} {facts[key]}" for key in named if facts.get(key) not in (None, 0, "fixed")]
        return ", ".join([f"seq_len {facts.get('seq_len')}", *rest])
    if name == "batch":
        return ", ".join(f"{word} {facts.get(key)}" for key, word in _BATCH.items())
    if name == "layout":
        return " x ".join(f"{key} {facts[key]}" for key in _LAYOUT if _number(facts.get(key)) > 1) or "one rank"
    return {"step": run.step_kind, "engine": run.engine}.get(name, "")


def _by_mode(recipe: str, setting: str, modes: Mapping[str, Group], options: Options) -> Iterator[Plan]:
    off = modes.get("off")
    for label, group in modes.items():
        if group.own_off and not (options.against_off_runs and off):
            yield Plan(
                recipe=recipe,
                setting=setting,
                base="off",
                other=label,
                base_arms=group.own_off,
                other_arms=group.arms,
                is_same_run=True,
            )
        elif off and label != "off":
            yield Plan(
                recipe=recipe, setting=setting, base="off", other=label, base_arms=off.arms, other_arms=group.arms
            )
        against_on = "mode" in options.allow or not off
        if group.own_off and "on" in modes and against_on:
            yield Plan(
                recipe=recipe,
                setting=setting,
                base="on",
                other=label,
                base_arms=modes["on"].arms,
                other_arms=group.arms,
                is_emulation_against_on=True,
            )


def _by_setting(groups: Mapping[Cell, Mapping[str, Group]]) -> Iterator[Plan]:
    """Each step or engine against the first one of the same recipe and mode; sizes stand side by side only."""
    first: dict[tuple[str, ...], tuple[Setting, Group]] = {}
    for (recipe, setting), modes in groups.items():
        told_apart = {name for name, _ in setting} & {"step", "engine"}
        for label, group in modes.items() if told_apart else ():
            rest = [value for name, value in setting if name in _SIDE_BY_SIDE]
            base_setting, base = first.setdefault((recipe, *rest, label), (setting, group))
            if base is not group:
                yield Plan(
                    recipe=recipe,
                    setting=", ".join([*rest, "CC off" if label == "off" else "CC on" if label == "on" else label]),
                    base=_named(base_setting),
                    other=_named(setting),
                    base_arms=base.arms,
                    other_arms=group.arms,
                    differing=tuple(field for name in told_apart for field in _DIFFERING[name]),
                )


def _named(setting: Setting) -> str:
    return ", ".join(value for name, value in setting if name in ("step", "engine"))


def _listed(groups: Mapping[Cell, Mapping[str, Group]]) -> str:
    return "; ".join(
        f"{_called(*cell)}: "
        + ", ".join(f"{len(group.arms)} run{'s' * (len(group.arms) > 1)} {label}" for label, group in modes.items())
        for cell, modes in groups.items()
    )
