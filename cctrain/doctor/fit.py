"""Whether a recipe fits this machine's GPUs, and what makes it fit where it does not as it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cctrain.doctor.memory import estimate
from cctrain.doctor.overrides import changed, overrides
from cctrain.request.checks import NONE, Layout, layout_of

MARGIN = 1.15
"""Samples may be longer than supposed, memory in pieces, and CUDA and NCCL take some that is not torch's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """What a recipe takes of each GPU, and whether there is as much."""

    verdict: str
    """fits, may fit (the estimate is nearer to the limit than it is sure), does not fit, no GPU here, or unknown."""
    num_ranks: int
    estimate_gib: float | None
    overrides: tuple[str, ...] = ()
    """What must be added for that verdict."""


@dataclass(frozen=True, slots=True)
class Machine:
    """The GPUs that there are to fit."""

    num_gpus: int
    memory_gib: float
    """Of the smallest."""


def fit(
    config: Mapping[str, Any], recipe: Mapping[str, Any], num_ranks: int, seq_len: int, machine: Machine
) -> tuple[Fit, dict[str, Any]]:
    """Of the recipe as it is on `num_ranks`, or with the first change that makes it fit `machine`; and that recipe."""
    tried = []
    for ranks, changes in _ways(recipe, num_ranks, machine.num_gpus):
        new = changed(recipe, changes)
        layout = layout_of(new, ranks)
        needed = estimate(config, new, layout, seq_len) if layout else None
        if needed:
            launch = (f"launch.nproc_per_node={ranks}",) if ranks != num_ranks else ()
            one = Fit(
                verdict=_verdict(needed.total_gib, ranks, machine),
                num_ranks=ranks,
                estimate_gib=round(needed.total_gib, 1),
                overrides=launch + overrides(recipe, changes),
            )
            tried.append((one, new))
    if not tried:
        return Fit(verdict="unknown", num_ranks=num_ranks, estimate_gib=None), dict(recipe)
    for verdict in ("fits", "may fit"):
        for found in tried:
            if found[0].verdict == verdict:
                return found
    return tried[0]


def _verdict(needed_gib: float, num_ranks: int, machine: Machine) -> str:
    if not machine.num_gpus:
        return "no GPU here"
    if num_ranks > machine.num_gpus or needed_gib > machine.memory_gib:
        return "does not fit"
    return "fits" if needed_gib * MARGIN <= machine.memory_gib else "may fit"


def _ways(recipe: Mapping[str, Any], num_ranks: int, num_gpus: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Ranks and changes of the recipe, the smallest change first."""
    distributed = recipe.get("distributed") or {}
    is_split = (distributed.get("tp_size") or 1) != 1
    has_checkpointing = bool(distributed.get("activation_checkpointing"))
    as_it_is = layout_of(recipe, num_ranks)
    yield num_ranks, sharing(recipe, as_it_is) if as_it_is else {}
    for ranks in dict.fromkeys((min(num_ranks, num_gpus), num_gpus)):
        for is_sharded in (False, True)[: 1 + is_split]:
            for is_checkpointing in (False, True)[: 2 - has_checkpointing]:
                changes: dict[str, Any] = {"distributed.tp_size": 1} if is_sharded else {}
                changes |= {"distributed.activation_checkpointing": True} if is_checkpointing else {}
                layout = layout_of(changed(recipe, changes), ranks) if ranks else None
                if layout:
                    yield ranks, changes | sharing(recipe, layout)


def sharing(recipe: Mapping[str, Any], layout: Layout) -> dict[str, Any]:
    """What `layout` needs to share out the data: a global batch where the recipe's does not divide, and no word from it
    of another number of ranks."""
    scheduler = recipe["step_scheduler"]
    per_pass = scheduler.get("local_batch_size", 1) * layout.data
    is_whole = scheduler.get("global_batch_size", 1) % per_pass == 0
    is_named = (recipe.get("distributed") or {}).get("dp_size") in (*NONE, layout.data)
    batch = {} if is_whole else {"step_scheduler.global_batch_size": per_pass}
    return batch if is_named else {"distributed.dp_size": "none", **batch}
