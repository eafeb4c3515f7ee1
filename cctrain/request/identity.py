"""A run's identity: what must match for two runs to be compared."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cctrain.config import Config
from cctrain.request.checks import Layout
from cctrain.request.recipe import recipe_hash


def identity(
    config: Config, layout: Layout, *, versions: Mapping[str, str | None], gpus: Sequence[str], num_gpus: int
) -> dict[str, Any]:
    """The record's `identity`; `versions` are those of the packages, `gpus` the models of the run's GPUs."""
    recipe = config.train
    scheduler = recipe["step_scheduler"]
    return {
        "recipe_hash": recipe_hash(recipe),
        "model": _name(recipe["model"]),
        "layout": dataclasses.asdict(layout),
        "batch": {key: scheduler.get(key, 1) for key in ("global_batch_size", "local_batch_size")},
        "sequence": {
            "data": config.data.kind.value,
            "seq_len": config.data.seq_len,
            "lengths": config.data.lengths.value,
            "packed": (recipe.get("packed_sequence") or {}).get("packed_sequence_size", 0),
        },
        "precision": str(recipe["model"].get("torch_dtype", "auto")),
        "versions": versions,
        "gpu": gpus,
        "num_gpus": num_gpus,
    }


def _name(model: Mapping[str, Any]) -> str:
    """The model's name without the place it lies at, which differs between machines, and what the recipe changes in its
    configuration: fewer layers."""
    source = model.get("pretrained_model_name_or_path") or model.get("config")
    changed = dict(source) if isinstance(source, dict) else {"pretrained_model_name_or_path": source}
    changed.pop("_target_", None)
    name = str(changed.pop("pretrained_model_name_or_path", None))
    name = name.removeprefix("{recipes}/") if not name.startswith("/") else Path(name).name
    return ", ".join([name, *_settings(changed)])


def _settings(changed: Mapping[str, Any], above: str = "") -> Iterator[str]:
    for key, value in changed.items():
        if isinstance(value, dict):
            yield from _settings(value, f"{above}{key}.")
        else:
            yield f"{above}{key} {value}"
