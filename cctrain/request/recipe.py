"""The AutoModel recipe of a run: the recipe file, with the weights, data and method of measuring asked for put in.

Paths that differ between machines or runs stay symbolic, `{recipes}` and `{run_dir}`, until the run directory exists,
so that the same request has the same recipe hash everywhere.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import yaml

from cctrain.config import Config, MeasureConfig, RecipeConfig, WeightsConfig, WeightsKind
from cctrain.errors import RequestError, one_line
from cctrain.packaged import RECIPES
from cctrain.request.data import put_data
from cctrain.untrusted import shown, text_of

LLM, VLM = "TrainFinetuneRecipeForNextTokenPrediction", "FinetuneRecipeForVLM"
_MOST_BYTES = 1 << 20
_TRACKERS = ("wandb", "mlflow", "comet")
_EVERY = 10**9
"""An interval longer than any run, for what AutoModel cannot be told to leave out."""


def build_recipe(config: Config) -> dict[str, Any]:
    """The AutoModel recipe asked for by `config`, before the user's `train.*` overrides. Raises RequestError."""
    path = Path(config.recipe.file)
    recipe = _read_yaml(path if path.is_absolute() else RECIPES / path)
    stated = recipe.get("recipe", "")
    if isinstance(stated, dict) and "file" in stated:
        raise RequestError(f"{path} is no AutoModel recipe, but cctrain's settings for one: recipe={path.stem}")
    recipe["recipe"] = str(stated.get("_target_", "") if isinstance(stated, dict) else stated).rpartition(".")[2]
    check_shape(recipe, str(path))
    name = recipe["recipe"]
    if not path.is_absolute():
        recipe = _symbolic(recipe)
    if config.recipe.pretrained:
        recipe["model"]["pretrained_model_name_or_path"] = config.recipe.pretrained
    _put_weights(recipe, config.weights, config.recipe)
    put_data(recipe, config.data, config.recipe, is_vlm=name == VLM)
    _put_measuring(recipe, config.measure)
    return recipe


def check_shape(recipe: dict[str, Any], where: str) -> None:
    """Raises RequestError where `recipe` lacks what every AutoModel fine-tuning recipe has; `where` it came from."""
    if recipe.get("recipe") not in (LLM, VLM):
        raise RequestError(f"{where}: its key recipe is {recipe.get('recipe')!r}; allowed is {LLM} or {VLM}")
    for section in ("model", "step_scheduler", "dataset", "optimizer", "loss_fn"):
        if not isinstance(recipe.get(section), dict):
            raise RequestError(f"{where}: an AutoModel recipe needs the section {section}")
    for section in ("dataset", "dataloader", "dist_env", "distributed", "checkpoint", "packed_sequence", "processor"):
        if not isinstance(recipe.get(section, {}), dict):
            raise RequestError(
                f"{where}: section {section} is {recipe[section]!r}; allowed is a mapping, or to leave it out"
            )
    for section in ("lr_scheduler", "peft", "compile", "clip_grad_norm"):
        if not isinstance(recipe.get(section), dict | None):
            raise RequestError(f"{where}: section {section} is {recipe[section]!r}; allowed is a mapping, or null")


def is_cpu_recipe(recipe: dict[str, Any]) -> bool:
    """Whether the recipe's process group is gloo's, which is how a recipe says that it runs without a GPU."""
    return bool(recipe.get("dist_env", {}).get("backend", "nccl") == "gloo")


def located(recipe: dict[str, Any], run_dir: Path) -> dict[str, Any]:
    """The recipe with this machine's paths in place of `{recipes}` and `{run_dir}`."""
    text = json.dumps(recipe)
    for symbol, path in (("{recipes}", RECIPES), ("{run_dir}", run_dir)):
        text = text.replace(symbol, json.dumps(str(path.resolve()))[1:-1])
    located_recipe: dict[str, Any] = json.loads(text)
    return located_recipe


def _read_yaml(path: Path) -> dict[str, Any]:
    """A recipe file as a dictionary. Raises RequestError naming the file and line where it is no YAML mapping."""
    try:
        content = yaml.safe_load(text_of(path, _MOST_BYTES))
    except OSError as error:
        raise RequestError(f"recipe file {path} cannot be read: {error.strerror}") from error
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}, " if error.problem_mark else ""
        raise RequestError(f"recipe file {path} is no YAML: {line}{error.problem}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise RequestError(f"recipe file {path}: {one_line(error)}") from error
    except RecursionError as error:
        raise RequestError(f"recipe file {path}: it is nested too deeply") from error
    if not isinstance(content, dict):
        raise RequestError(f"recipe file {path}: it holds {shown(content)}; allowed is a mapping of sections")
    plain: dict[str, Any] = json.loads(json.dumps(content, default=str))  # a date is text, as every key is
    return {section: value for section, value in plain.items() if value is not None}


def recipe_hash(recipe: dict[str, Any]) -> str:
    """SHA-256 (16 hex digits) of what is trained, without how long it is measured."""
    trained = copy.deepcopy(recipe)
    for key in ("max_steps", "num_epochs", "ckpt_every_steps", "val_every_steps"):
        trained["step_scheduler"].pop(key, None)
    trained = {key: value for key, value in trained.items() if not key.startswith(("checkpoint", "validation_"))}
    # A file's place differs between machines, its name does not.
    text = re.sub(r'"/(?:[^"]*/)?([^"/]+)/?"', r'"\1"', json.dumps(trained, sort_keys=True))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _symbolic(node: Any) -> Any:
    """Relative paths of a packaged recipe are relative to recipes/, not to where the user stands."""
    if isinstance(node, dict):
        return {key: _symbolic(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_symbolic(value) for value in node]
    return f"{{recipes}}/{node}" if isinstance(node, str) and node.startswith("models/") else node


def _put_weights(recipe: dict[str, Any], weights: WeightsConfig, entry: RecipeConfig) -> None:
    model = recipe["model"]
    target, _, how = str(model.get("_target_", "")).rpartition(".")
    if weights.path and weights.kind is not WeightsKind.pretrained:
        raise RequestError(
            f"weights.path={weights.path} is read with weights=pretrained only, not {weights.kind.value}"
        )
    if weights.kind is WeightsKind.random and how == "from_pretrained":
        source = f"{{recipes}}/{entry.model}" if entry.model else model["pretrained_model_name_or_path"]
        rest = {key: value for key, value in model.items() if key not in ("_target_", "pretrained_model_name_or_path")}
        rest.pop("trust_remote_code", None)
        config = {"_target_": "transformers.AutoConfig.from_pretrained", "pretrained_model_name_or_path": source}
        recipe["model"] = {"_target_": f"{target}.from_config", "config": config, **rest}
        if entry.model and _model_type(entry.model).startswith("gemma4"):
            # AutoModel's own dense Gemma 4 class leaves from_config weights uninitialised (values near 1e38), and on
            # Hugging Face's Liger would change kernels that AutoModel's class keeps.
            recipe["model"] |= {"force_hf": True, "use_liger_kernel": False}
    elif weights.kind is WeightsKind.pretrained:
        path = weights.path or model.get("pretrained_model_name_or_path")
        if not path:
            raise RequestError(
                f"weights=pretrained: recipe {entry.name} names no model; add weights.path=DIRECTORY or a hub id"
            )
        rest = {key: value for key, value in model.items() if key not in ("_target_", "config", "force_hf")}
        recipe["model"] = {**rest, "_target_": f"{target}.from_pretrained", "pretrained_model_name_or_path": path}


def _model_type(model: str) -> str:
    return str(json.loads((RECIPES / model / "config.json").read_text(encoding="utf-8"))["model_type"])


def _put_measuring(recipe: dict[str, Any], measure: MeasureConfig) -> None:
    """The seed post's method: no validation, no checkpoint, a fixed number of steps; trackers run in the parent."""
    scheduler = recipe["step_scheduler"]
    scheduler["max_steps"] = measure.warmup + measure.most_steps
    scheduler["num_epochs"] = None
    for tracker in _TRACKERS:
        recipe.pop(tracker, None)
    if not measure.validation:
        for key in [key for key in recipe if key.startswith("validation_")]:
            del recipe[key]
        scheduler["val_every_steps"] = None
    if not measure.checkpoint:
        scheduler["ckpt_every_steps"] = _EVERY
        recipe["checkpoint"] = {**recipe.get("checkpoint", {}), "enabled": False}
    recipe.setdefault("checkpoint", {})["checkpoint_dir"] = "{run_dir}/checkpoints"
