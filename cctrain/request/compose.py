"""Command-line overrides to a validated `Config`, with Hydra.

Hydra composes here, once, in the parent; ranks read the result. It composes twice: first everything but the recipe's
own keys, because which weights and data are asked for decides what the recipe holds; then again with the recipe as the
node `train`, so that any of its keys can be overridden with Hydra's own grammar (`train.a.b=1`, `+train.new=1`,
`~train.gone`). A toll profile never reaches Hydra, which would take a file's text for its own grammar.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cctrain.config import Config
from cctrain.errors import RequestError
from cctrain.nearest import did_you_mean
from cctrain.packaged import CONF
from cctrain.request.allowed import refuse_secret_interpolations
from cctrain.request.emulated import check_emulated, take_tolls
from cctrain.request.hydra_errors import explain, own_keys
from cctrain.request.recipe import build_recipe, check_shape

OWN_FILE = "own_file"
"""Name under which a recipe file given by path is known to Hydra."""


def compose_config(arguments: list[str], *, is_tuned: bool = False) -> Config:
    """Compose `arguments` (`key=value`) to a config whose `train` is the whole AutoModel recipe.

    `is_tuned`: for the verb tune, which alone reads tune.*. Raises RequestError for anything that is not a valid
    request.
    """
    refuse_secret_interpolations(arguments)
    arguments, tolls = take_tolls(arguments)
    overrides = _parse([_quoted_path(argument) for argument in arguments])
    recipe_entry = _recipe_by_path(overrides)
    own = [o for o in overrides if not _is_train(o)]
    for override in overrides:
        if override.key_or_group == "train":
            raise RequestError(f"{override.input_line}: name a key of the recipe, as in train.optimizer.lr=1e-4")
    for override in own:
        _check_verb(override, is_tuned=is_tuned)
        _check_key(override)
    recipes = [o for o in own if o.key_or_group == "recipe"]
    if len(recipes) > 1:
        raise RequestError(f"recipe is given {len(recipes)} times: {', '.join(str(o.input_line) for o in recipes)}")
    if not recipes:
        raise RequestError(f"no recipe given: add recipe=NAME, one of {_listed('recipe')}, or recipe=FILE")
    lines = [f"recipe={OWN_FILE}" if o.key_or_group == "recipe" and recipe_entry else str(o.input_line) for o in own]
    config = _to_config(_compose(lines, {}, recipe_entry), lines)
    config.tolls = tolls
    check_emulated(config)
    config.train = build_recipe(config)
    train_lines = [str(o.input_line) for o in overrides if _is_train(o)]
    if train_lines:
        composed = _compose(lines + train_lines, config.train, recipe_entry)
        resolved = _resolved(composed.train, train_lines, config.train)
        _check_numbers(config.train, resolved, "train")
        check_shape(resolved, "the recipe with its overrides")
        config.train = resolved
    return config


def _check_numbers(recipe: Any, changed: Any, key: str) -> None:
    """Refuse words where the recipe has a number: AutoModel would fail on them in the ranks, and not say for which
    key. It takes `none` for a number that it finds out by itself."""
    if isinstance(recipe, dict) and isinstance(changed, dict):
        for name in recipe.keys() & changed.keys():
            _check_numbers(recipe[name], changed[name], f"{key}.{name}")
    is_number = isinstance(recipe, int | float) and not isinstance(recipe, bool)
    if is_number and isinstance(changed, str) and changed.lower() != "none":
        raise RequestError(f"{key}={changed}: allowed is a number, as the recipe's {recipe}")


def _parse(arguments: list[str]) -> list[Override]:
    for argument in arguments:
        if argument.startswith(("-", "=")) or ("=" not in argument and not argument.startswith("~")):
            recipe = f" Did you mean recipe={argument}?" if argument in _options("recipe") else ""
            if Path(argument).is_dir():
                recipe = " It is a directory: the verbs compare and predict read runs that there are."
            raise RequestError(
                f"got {argument}: settings are written key=value, no space around =, quotes around a value with spaces."
                f"{recipe} See `python -m cctrain --help`"
            )
    overrides = [_parse_one(argument) for argument in arguments]
    for override in overrides:
        if override.is_sweep_override():
            raise RequestError(
                f"{override.input_line}: one value a key (several: the verb campaign); a value with commas needs "
                "[brackets] or quotes"
            )
    return overrides


def _parse_one(argument: str) -> Override:
    try:
        override = OverridesParser.create().parse_override(argument)
    except HydraException as error:
        raise RequestError(
            f"cannot read {argument}: put a value with special characters into quotes, 'key=\"a=b\"'"
        ) from error
    if not override.key_or_group or override.package is not None:
        raise RequestError(f"{argument}: allowed is KEY=VALUE, the key without @")
    return override


def _quoted_path(argument: str) -> str:
    """A recipe file may be named anything; Hydra's grammar wants quotes around most of it."""
    key, _, value = argument.partition("=")
    if key != "recipe" or not Path(value).expanduser().is_file():
        return argument
    quoted = value.replace("'", "\\'")
    return f"recipe='{quoted}'"


def _is_train(override: Override) -> bool:
    return str(override.key_or_group).partition(".")[0] == "train"


def _recipe_by_path(overrides: list[Override]) -> dict[str, Any] | None:
    """Hydra takes no path as a group's choice, so a recipe given by path becomes a choice of its own."""
    for override in overrides:
        value = override.value()
        if override.key_or_group != "recipe" or not isinstance(value, str) or value in _options("recipe"):
            continue
        if "/" not in value and not value.endswith((".yaml", ".yml")):
            return None
        path = Path(value).expanduser()
        if not path.exists():
            raise RequestError(f"recipe={value}: no such file; give an AutoModel recipe or one of {_listed('recipe')}")
        return {"recipe": {"name": path.stem, "file": str(path.resolve()), "model": None, "text": None}}
    return None


def _options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def _listed(group: str) -> str:
    return ", ".join(_options(group))


def _check_verb(override: Override, *, is_tuned: bool) -> None:
    """Refuse what another verb reads."""
    verb = str(override.key_or_group).partition(".")[0]
    if verb == "campaign" or (verb == "tune" and not is_tuned):
        raise RequestError(f"{override.input_line} is read by the verb: python -m cctrain {verb} ...")


def _check_key(override: Override) -> None:
    """Refuse a group choice or key that does not exist, naming the nearest that does."""
    key = str(override.key_or_group)
    groups, known = [path.name for path in CONF.iterdir() if path.is_dir()], list(own_keys())
    if key not in (*groups, *known):
        same_end = [name for name in known if name.rpartition(".")[2] == key]
        meant = f" Did you mean {same_end[0]}?" if same_end else did_you_mean(key, [*known, *groups])
        raise RequestError(
            f"unknown key {key}.{meant} Keys are listed by `python -m cctrain --help`; those of the AutoModel recipe "
            "begin with train."
        )
    if override.type is not OverrideType.CHANGE:
        raise RequestError(f"{override.input_line}: allowed is {key}=VALUE; + and ~ are for keys of the recipe")
    if key in groups:
        _check_choice(override, key)


def _check_choice(override: Override, group: str) -> None:
    if isinstance(override.value(), (dict, list)):
        raise RequestError(f"{override.input_line}: allowed is {group}=NAME, one of {_listed(group)}")
    name = str(override.input_line).partition("=")[2].strip("'\"")
    is_path = group == "recipe" and ("/" in name or name.endswith((".yaml", ".yml")))
    if name not in _options(group) and not is_path:
        also = " or a file whose name ends in .yaml" if group == "recipe" else ""
        raise RequestError(f"{group}={name}: allowed is {_listed(group)}{also}.{did_you_mean(name, _options(group))}")


def _compose(lines: list[str], train: dict[str, Any], recipe_entry: dict[str, Any] | None) -> DictConfig:
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    store.store(group="train", name="recipe", node=_escaped(train), package="train")
    if recipe_entry:
        store.store(group="recipe", name=OWN_FILE, node=recipe_entry, package="_global_")
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(CONF.resolve())):
            composed: DictConfig = compose("config", overrides=lines)
            return composed
    except (HydraException, OmegaConfBaseException) as error:
        raise RequestError(explain(error, lines, train)) from error


def _escaped(node: Any) -> Any:
    """AutoModel resolves `${VAR}` itself, on the rank; keep OmegaConf from reading it as its own interpolation."""
    if isinstance(node, dict):
        return {key: _escaped(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_escaped(value) for value in node]
    if isinstance(node, str):  # OmegaConf reads a backslash before `${` as its escape, and two as a backslash
        return re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + "\\${", node)
    return node


def _resolved(node: DictConfig, lines: list[str], train: dict[str, Any]) -> dict[str, Any]:
    try:
        resolved: dict[str, Any] = OmegaConf.to_container(node, resolve=True)  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        raise RequestError(explain(error, lines, train)) from error
    return resolved


def _to_config(composed: DictConfig, lines: list[str]) -> Config:
    try:
        config = OmegaConf.to_object(composed)
    except OmegaConfBaseException as error:
        if isinstance(error.__cause__, RequestError):
            raise error.__cause__ from None
        raise RequestError(explain(error, lines, {})) from error
    assert isinstance(config, Config)
    return config
