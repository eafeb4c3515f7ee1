"""What must be alike, whole and steady before runs are compared, and what was taken all the same.

Each reason not to compare has the name of a field, by which `--allow` lets it pass: identity.versions.torch, engine,
step_kind, status (partial runs), steady, mode (unknown, or emulated against on).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from cctrain.comparison.arms import Arm, arms_of, paired_blocks
from cctrain.errors import RequestError
from cctrain.load import Run
from cctrain.nearest import did_you_mean
from cctrain.untrusted import shown

JUDGED = ("status", "steady", "mode", "engine", "step_kind")
"""What can be allowed beside the fields of `identity`."""
OF_ONE_RUN = ("status", "steady", "mode")
"""Those of them that speak of a run by itself, for which it can be left out."""
_MOST_NAMED = 8
_WAYS_OUT = {
    field: f"; --by {name} puts them side by side"
    for field, name in (
        *(("engine", "engine"), ("step_kind", "step"), ("identity.sequence.seq_len", "sequence")),
        ("identity.model", "model"),
        *((f"identity.batch.{key}_batch_size", "batch") for key in ("local", "global")),
        *((f"identity.layout.{key}", "layout") for key in ("data", "tensor")),
    )
}


@dataclass(frozen=True, slots=True)
class Objection:
    """Why runs should not be compared."""

    field: str
    why: str
    """A sentence naming the field, the runs and the values."""


class RefusedError(RequestError):
    """The runs are not comparable."""

    def __init__(self, objections: Sequence[Objection]) -> None:
        self.why = tuple(dict.fromkeys(one.why for one in objections))
        self.way_out = " ".join(dict.fromkeys(f"--allow {one.field}" for one in objections))
        out = " ".join(dict.fromkeys(f"--leave-out {one.field}" for one in objections if one.field in OF_ONE_RUN))
        leave = f"leave out such runs{f' ({out})' if out else ''}"
        listed = f" {self.why[0]}. " if len(self.why) == 1 else "".join(f"\n  {why}" for why in (*self.why, ""))
        super().__init__(f"not comparable:{listed}Repeat or {leave}, or take them with {self.way_out}")


def judge(objections: Iterable[Objection], allowed: Sequence[str]) -> tuple[Objection, ...]:
    """The objections that `allowed` lets pass, each once. Raises RefusedError where others are left."""
    once = list(dict.fromkeys(objections))
    left = [one for one in once if not _is_allowed(one.field, allowed)]
    if left:
        raise RefusedError(left)
    return tuple(once)


def _is_allowed(field: str, allowed: Sequence[str]) -> bool:
    """By its own name, or that of what holds it: identity.versions covers identity.versions.torch."""
    return any(field == name or field.startswith(f"{name}.") for name in allowed)


def kept(runs: Sequence[Run], leave_out: Sequence[str]) -> tuple[list[Run], list[str]]:
    """The runs against which nothing speaks that `leave_out` names, of OF_ONE_RUN, and notes on the others. Raises
    RequestError where none is kept."""
    found: list[Run] = []
    notes: list[str] = []
    for run in runs:
        why = [one.why for one in whole_and_steady(arms_of(run)) if one.field in leave_out] if leave_out else []
        notes += [f"left out: {one}" for one in why[:1]]
        found += [] if why else [run]
    if runs and not found:
        raise RequestError(f"--leave-out {', '.join(leave_out)} leaves no run; {'; '.join(notes)}")
    return found, notes


def check_names(allowed: Sequence[str], runs: Iterable[Run]) -> None:
    """Raises RequestError for a name in `allowed` that none of the runs has."""
    leaves = {leaf for run in runs for leaf in flat(run.identity, "identity")}
    inner = {leaf.rsplit(".", depth)[0] for leaf in leaves for depth in range(1, leaf.count("."))}
    known = sorted(leaves | inner) + list(JUDGED)
    for name in allowed:
        if name not in known:
            leaf = name.rpartition(".")[2]
            near = f" Did you mean {leaf}?" if leaf in JUDGED else did_you_mean(name, known)
            meant = near or f" Allowed is {', '.join(known)}"
            raise RequestError(f"--allow {shown(name)}: the runs have no such field.{meant}")


def whole_and_steady(arms: Iterable[Arm]) -> Iterator[Objection]:
    """Partial runs, runs that are not steady, and runs of which nobody knows the mode."""
    for arm in arms:
        run = arm.run
        if run.status != "complete":
            why = f" ({run.failure})" if run.failure else ""
            yield Objection("status", f"status of {run.run_id} is {run.status}{why}")
        if run.mode == "unknown":
            yield Objection("mode", f"mode of {run.run_id} is unknown: its machine did not say whether CC is on")
        if arm.why_unsteady:
            part = f", {arm.label}," if run.mode == "emulated" else ""
            yield Objection("steady", f"{run.run_id}{part} is not steady: {arm.why_unsteady}")


def paired(plain: Sequence[Arm], tolled: Sequence[Arm]) -> Iterator[Objection]:
    """Emulated runs whose two arms are steady, and no pair of their blocks is."""
    for own, arm in zip(plain, tolled, strict=True):
        if own.is_sound and arm.is_sound and not paired_blocks(own, arm):
            why = f"{arm.run.run_id} has no pair of blocks that are steady throughout: medians of both arms stand in"
            yield Objection("steady", why)


def alike(runs: Sequence[Run], *, has_by: bool = True) -> Iterator[Objection]:
    """Every field in which the runs' `identity`, engine or kind of step differ. `has_by`: who asks can be told --by."""
    facts = [{"engine": run.engine, "step_kind": run.step_kind, **flat(run.identity, "identity")} for run in runs]
    names = dict.fromkeys(name for each in facts for name in each)
    for name in names:
        unlike: dict[str, list[Run]] = {}
        for run, each in zip(runs, facts, strict=True):
            unlike.setdefault(json.dumps(each.get(name), sort_keys=True), []).append(run)
        if len(unlike) > 1:
            values = [f"{shown(json.loads(value))} ({_named(those)})" for value, those in unlike.items()]
            listed = ", ".join(values[:_MOST_NAMED]) + ", ..." * (len(values) > _MOST_NAMED)
            yield Objection(name, f"{name} differs: {listed}{_WAYS_OUT.get(name, '') if has_by else ''}")


def _named(runs: Sequence[Run]) -> str:
    """The first of them, and how many more there are."""
    names = list(dict.fromkeys(run.run_id for run in runs))
    return f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else names[0]


def of_unlike_code(runs: Iterable[Run]) -> Iterator[str]:
    """A note where the runs, that are compared, are of different commits of cctrain's code."""
    found = dict.fromkeys(commit for run in runs if (commit := _fact(run, "repository", "cctrain", "commit")))
    if len(found) > 1:
        listed = [commit[:9] for commit in list(found)[:_MOST_NAMED]]
        yield f"the runs are of different commits of cctrain: {', '.join(listed)}{', ...' * (len(found) > _MOST_NAMED)}"


def of_cpus(runs: Iterable[Run]) -> Iterator[str]:
    """A note where none of the runs, that are compared, had a GPU. Emulated ones say so themselves."""
    kinds = {(run.mode == "emulated", *map(str, run.identity.get("gpu") or ())) for run in runs}
    if kinds == {(False, "cpu")}:
        yield "no GPU: these are figures of a CPU, which say nothing about CC or any GPU"


def of_machines(runs: Iterable[Run]) -> Iterator[str]:
    """A note where the runs, that are compared, are of several machines. With CC on and off a machine is booted between
    them, and nothing is said of it."""
    runs = list(runs)
    boots = {boot for run in runs if (boot := _fact(run, "host", "boot"))}
    if len(boots) > 1 and all(run.mode != "on" for run in runs):
        which = f"{len(boots)} machines, or boots of them (platform.host.boot)"
        yield f"the runs are of {which}: a step that the host bounds takes as long as each host makes it"


def _fact(run: Run, *names: str) -> str | None:
    """A text within the run's platform."""
    node: Any = run.platform
    for name in names:
        node = node.get(name) if isinstance(node, dict) else None
    return node if isinstance(node, str) else None


def flat(node: Any, path: str) -> dict[str, Any]:
    """The leaves of a tree by dotted path; lists are leaves, and so are those that hold nothing."""
    if not isinstance(node, dict) or not node:
        return {path: node}
    return {name: value for key, child in node.items() for name, value in flat(child, f"{path}.{key}").items()}
