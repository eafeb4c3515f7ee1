"""One recipe on one machine: does it fit, and what will hurt."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cctrain.config import Config
from cctrain.doctor.fit import MARGIN, Fit, Machine, fit
from cctrain.doctor.hurts import Hurt, hurts
from cctrain.doctor.memory import estimate
from cctrain.packaged import RECIPES
from cctrain.request.checks import Layout, check_layout, layout_of, smallest_world
from cctrain.request.data import row_tokens
from cctrain.request.hf import reasons
from cctrain.request.recipe import is_cpu_recipe


@dataclass(frozen=True, slots=True)
class Finding:
    """What there is to say of a recipe. One for a CPU needs no GPU's memory and pays none of CC's tolls."""

    recipe: str
    seq_len: int
    """Tokens a sample that the estimate is for."""
    fit: Fit | None = None
    hurts: tuple[Hurt, ...] = ()
    not_hf: tuple[str, ...] = ()
    """Why engine=hf cannot run it; engine=automodel runs every recipe."""


def judge(config: Config, machine: Machine) -> Finding:
    """Of the recipe in `config` as it is. Raises RequestError for one that cannot run."""
    recipe, name = config.train, config.recipe.name
    data_ranks = (recipe.get("distributed") or {}).get("dp_size")
    fewest = smallest_world(recipe) * (data_ranks if isinstance(data_ranks, int) else 1)
    check_layout(recipe, config.measure, fewest)
    packing = (recipe.get("packed_sequence") or {}).get("packed_sequence_size") or 0
    seq_len = row_tokens(recipe, config.data.seq_len, packing)
    not_hf = tuple(reasons(recipe))
    if is_cpu_recipe(recipe):
        return Finding(name, seq_len, not_hf=not_hf)
    num_ranks = config.launch.nproc_per_node or machine.num_gpus or fewest
    model = model_config(config)

    def holds(new: Mapping[str, Any], layout: Layout) -> bool:
        needed = estimate(model, new, layout, seq_len)
        return not machine.num_gpus or (needed is not None and needed.total_gib * MARGIN <= machine.memory_gib)

    found, fitting = fit(model, recipe, num_ranks, seq_len, machine)
    layout = layout_of(fitting, found.num_ranks)
    hurt = tuple(hurts(fitting, layout, holds)) if layout else ()
    return Finding(name, seq_len, found, hurt, not_hf)


def model_config(config: Config) -> dict[str, Any]:
    """The model's config.json; empty for one that would have to be downloaded."""
    name = config.recipe.model or config.train["model"].get("pretrained_model_name_or_path")
    try:
        found: dict[str, Any] = json.loads((RECIPES / str(name) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found
