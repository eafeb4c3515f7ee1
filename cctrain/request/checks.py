"""What can be known to fail before anything is started: batches that do not divide, GPUs or hub that are not there."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cctrain.config import MeasureConfig
from cctrain.errors import RequestError

NONE: tuple[Any, ...] = (None, "none", "None")
"""What a recipe may write for nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How the ranks share the work. `data` ranks see different samples; world = data x tensor x pipeline x context."""

    world: int
    data: int
    tensor: int
    pipeline: int
    context: int


def check_layout(recipe: dict[str, Any], measure: MeasureConfig, world: int) -> Layout:
    """The layout of `recipe` on `world` ranks. Raises RequestError where ranks or batches do not divide, and for
    adapters of no rank."""
    scheduler = recipe["step_scheduler"]
    if scheduler.get("max_steps") != measure.warmup + measure.most_steps:
        raise RequestError("train.step_scheduler.max_steps follows from measure.warmup + measure.steps: set those")
    if measure.is_auto and scheduler.get("preemption_signal", "SIGTERM") in NONE:
        raise RequestError(
            "measure.steps=auto ends the ranks through AutoModel's poll for a signal: "
            "train.step_scheduler.preemption_signal may not be null; leave it out, or give measure.steps a number"
        )
    layout = layout_of(recipe, world)
    if layout is None:
        tensor, pipeline, context = _model_ranks(recipe)
        raise RequestError(
            f"{world} rank{'s' * (world > 1)} cannot hold train.distributed tp_size={tensor} x pp_size={pipeline} x "
            f"cp_size={context}: launch.nproc_per_node must be a multiple of {tensor * pipeline * context}, or lower "
            "those keys"
        )
    wanted = (recipe.get("distributed") or {}).get("dp_size")
    if wanted not in NONE and wanted != layout.data:
        raise RequestError(
            f"train.distributed.dp_size={wanted}, but {world} ranks leave {layout.data} for data: "
            "override it with none, or change launch.nproc_per_node"
        )
    _check_batch(scheduler, layout)
    rank = (recipe.get("peft") or {}).get("dim", 1)
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise RequestError(f"train.peft.dim={rank}: allowed is a whole number from 1, the adapters' rank")
    return layout


def layout_of(recipe: Mapping[str, Any], world: int) -> Layout | None:
    """How `world` ranks would share the work; None where they cannot. Raises RequestError for a size that is none."""
    tensor, pipeline, context = _model_ranks(recipe)
    data, rest = divmod(world, tensor * pipeline * context)
    if rest or not data:
        return None
    return Layout(world=world, data=data, tensor=tensor, pipeline=pipeline, context=context)


def smallest_world(recipe: Mapping[str, Any]) -> int:
    """The fewest ranks that can hold the recipe's layout."""
    return math.prod(_model_ranks(recipe))


def _model_ranks(recipe: Mapping[str, Any]) -> list[int]:
    """Along tensor, pipeline and context parallelism."""
    return [_size(recipe.get("distributed") or {}, key) for key in ("tp_size", "pp_size", "cp_size")]


def _size(distributed: dict[str, Any], key: str) -> int:
    value = distributed.get(key)
    if value in NONE:
        return 1
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise RequestError(f"train.distributed.{key}={value}: allowed is a whole number from 1")
    return value


def _check_batch(scheduler: dict[str, Any], layout: Layout) -> None:
    sizes = {}
    for key in ("global_batch_size", "local_batch_size"):
        value = scheduler.get(key, 1)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise RequestError(f"train.step_scheduler.{key}={value}: allowed is a whole number from 1")
        sizes[key] = value
    per_pass = sizes["local_batch_size"] * layout.data
    if sizes["global_batch_size"] % per_pass:
        default = " (AutoModel's default, as the recipe has none)" * ("global_batch_size" not in scheduler)
        raise RequestError(
            f"train.step_scheduler.global_batch_size={sizes['global_batch_size']}{default} does not divide into "
            "micro-batches: "
            f"with local_batch_size={sizes['local_batch_size']} on {layout.data} data-parallel ranks it must be a "
            f"multiple of {per_pass}"
        )


def check_gpus(num_ranks: int, num_gpus: int, recipe_name: str) -> None:
    """Raises RequestError where this machine has fewer GPUs than ranks are asked for."""
    if num_ranks > num_gpus:
        raise RequestError(
            f"recipe {recipe_name} needs {num_ranks} GPU{'s' * (num_ranks > 1)}, one a rank; this machine shows "
            f"{num_gpus or 'none'}.{' Set launch.nproc_per_node, or' * bool(num_gpus)} Look at the recipe with "
            "dry_run=true; tiny_* recipes run on CPU"
        )


def check_hub(recipe: dict[str, Any], weights_path: str | None = None) -> None:
    """Raises RequestError where a model or data set of the hub is neither on this disk nor to be had, and where a
    model's directory holds none. `weights_path` is what the request has for it, to be named so."""
    for stated, kind, name in _hub_names(recipe):
        key = "weights.path" if kind == "model" and name == weights_path else stated
        path = Path(name).expanduser()
        if name.startswith("{") or "$" in name:
            continue
        if path.exists():
            if kind == "model" and path.is_dir() and not (path / "config.json").is_file():
                raise RequestError(f"{key}={name}: the directory holds no config.json; {_WAY_OUT['config']}")
            continue
        problem = _out_of_reach(kind, name)
        if problem:
            way_out = _WAY_OUT["config" if stated.startswith("train.model.config") else kind]
            raise RequestError(f"{key}={name}: no such directory ({Path(name).absolute()}), {problem}; {way_out}")


_WAY_OUT = {
    "config": "give a directory with the model's config.json, in a file of your own relative to where you stand",
    "model": "weights=random needs no download; weights=pretrained weights.path=DIRECTORY reads a local one",
    "dataset": "data=pydoc and data=synthetic need no download; data=jsonl data.path=FILE reads your own",
}


def _hub_names(recipe: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    model = recipe["model"]
    config = model.get("config")
    source = model if "pretrained_model_name_or_path" in model else config if isinstance(config, dict) else {}
    name = config if isinstance(config, str) else source.get("pretrained_model_name_or_path")
    if isinstance(name, str):
        section = "train.model" if source is model or config is name else "train.model.config"
        yield f"{section}.{'config' if config is name else 'pretrained_model_name_or_path'}", "model", name
    dataset = recipe.get("dataset") or {}
    for key in ("dataset_name", "path_or_dataset", "path_or_dataset_id"):
        value = dataset.get(key)
        if isinstance(value, str) and not value.startswith(("/", ".")):
            yield f"train.dataset.{key}", "dataset", value


def _out_of_reach(kind: str, name: str) -> str | None:
    """Why the hub's `name` cannot be had, in words; None where it can, or is on this disk already."""
    from huggingface_hub import HfApi, constants, errors  # 0.3 s that only a recipe that names the hub pays

    folder = Path(constants.HF_HUB_CACHE) / f"{kind}s--{name.replace('/', '--')}" / "snapshots"
    datasets = Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets")
    if folder.is_dir() or (kind == "dataset" and (datasets / name.replace("/", "___")).is_dir()):
        return None
    login = "a login (hf auth login, or HF_TOKEN)"
    try:
        HfApi().auth_check(name, repo_type=kind)
    except errors.OfflineModeIsEnabled:
        return "not in the hub's cache, and HF_HUB_OFFLINE is set"
    except errors.GatedRepoError:
        return f"{constants.ENDPOINT} wants its licence accepted and {login}"
    except (errors.RepositoryNotFoundError, errors.HFValidationError):
        return f"{constants.ENDPOINT} has no such {kind}, or it is private and needs {login}"
    except Exception as error:  # noqa: BLE001 - whatever its HTTP client raises, which differs between its versions
        return f"not in the hub's cache, and the hub {constants.ENDPOINT} is out of reach ({error})"
    return None
