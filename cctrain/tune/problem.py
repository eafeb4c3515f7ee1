"""From a checked request to the search it asks for: what may be tried, what is known of it, within which limits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from operator import attrgetter

from cctrain.config import CcMode, Config
from cctrain.doctor.judge import model_config
from cctrain.errors import RequestError
from cctrain.peaks import peak_flops
from cctrain.request.checks import Layout
from cctrain.request.data import row_tokens
from cctrain.request.recipe import is_cpu_recipe
from cctrain.tune import space
from cctrain.tune.point import Point, Work
from cctrain.tune.search import Problem
from cctrain.tune.step_time import prior_of
from cctrain.tune.work import Model, work_of

_NAMES = tuple(spec.name for spec in fields(Point))
Check = Callable[[tuple[str, ...]], object]
"""Raises RequestError where a run with these further settings could not be started."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """What the search wants to know of the GPUs."""

    name: str | None
    """None where they differ, or there is none."""
    memory_gib: float | None
    """Of the smallest."""


def problem_of(config: Config, layout: Layout, gpu: Gpu, check: Check) -> Problem:
    """The search that `config` asks for. Raises RequestError for constraints that leave nothing to choose."""
    _check_limits(config)
    base = space.base_point(config, layout)
    model = Model(model_config(config), layout.pipeline, layout.context)
    points = _startable(config, base, space.points(config, base, layout, model.config), check)
    if not points:
        raise RequestError(
            f"tune.global_batch={config.tune.global_batch or [base.global_batch]} leaves no setting for "
            f"{layout.data} data-parallel ranks: name a range that holds a multiple of them, or add layout to tune.over"
        )
    works = {}
    for point in dict.fromkeys([base, *points]):
        recipe = space.recipe_of(config.train, base, point)
        works[point] = work_of(point, recipe, model, row_tokens(recipe, point.seq_len, point.packing))
    is_cpu = is_cpu_recipe(config.train)
    memory_gib = None if is_cpu else gpu.memory_gib
    if not base.is_replicated:
        works = {one: work for one, work in works.items() if not one.is_replicated or _is_held(work, memory_gib)}
    return Problem(
        base=base,
        points=[point for point in points if point in works],
        works=works,
        num_ranks=layout.world,
        prior=prior_of(peak_flops(gpu.name) if gpu.name else None, is_cpu=is_cpu),
        memory_gib=memory_gib,
        memory_margin=config.tune.memory_margin,
        min_keep=config.tune.min_keep,
    )


def _is_held(work: Work, memory_gib: float | None) -> bool:
    """Whether a GPU has room for a whole model; for what grows with the micro-batch as well is the search's to find."""
    return bool(memory_gib and work.memory_gib and work.memory_gib[0] < memory_gib)


def _check_limits(config: Config) -> None:
    if config.tune.min_keep is not None and config.cc.mode is not CcMode.emulated:
        raise RequestError(
            f"tune.min_keep={config.tune.min_keep} is read with cc=emulated only, whose runs give a keep ratio; got "
            f"cc={config.cc.mode.value}"
        )


def _startable(config: Config, base: Point, points: Sequence[Point], check: Check) -> list[Point]:
    """Points without the values that a run would be refused with: each is composed once, in the point nearest to the
    recipe as it stands; step and checkpointing together, as graphs may go with the one and not with both. One that the
    user named is an error; of those that the search thought of, it is left out."""
    named = {"seq_len": config.tune.seq_len, "packing": config.tune.packing}
    kept = list(points)
    for kinds in (("seq_len",), ("packing",), ("tensor", "is_replicated"), ("step", "is_checkpointing")):
        values_of = attrgetter(*kinds)
        for values in dict.fromkeys(map(values_of, points)):
            if values == values_of(base):
                continue
            alike = [point for point in points if values_of(point) == values]
            nearest = min(alike, key=lambda point: sum(getattr(point, name) != getattr(base, name) for name in _NAMES))
            try:
                check(space.settings(config.train, base, nearest))
            except RequestError:
                if named.get(kinds[0]):
                    raise
                kept = [point for point in kept if values_of(point) != values]
    return kept
