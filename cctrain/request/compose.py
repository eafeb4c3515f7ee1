"""Command-line overrides to a validated `Config`, with Hydra.

Hydra composes here, once, in the parent; ranks read the result. It composes twice: first everything but the recipe's
own keys, because which weights and data are asked for decides what the recipe holds; then again with the recipe as the
node `train`, so that any of its keys can be overridden with Hydra's own grammar (`train.a.b=1`, `+train.new=1`,
`~train.gone`). A toll profile never reaches Hydra, which would take a file's text for its own grammar.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cctrain.config import Config
from cctrain.errors import RequestError
from cctrain.nearest import did_you_mean
from cctrain.packaged import CONF
from cctrain.request.allowed import refuse_secret_interpolations
from cctrain.request.emulated import check_emulated, take_tolls

OWN_FILE = "own_file"
"""Name under which a recipe file given by path is known to Hydra."""

BuildRecipe = Callable[[Config], dict[str, Any]]


def compose_config(arguments: list[str], build_recipe: BuildRecipe, *, is_tuned: bool = False) -> Config:
    """Compose `arguments` (`key=value`); `build_recipe` makes the AutoModel recipe of the first pass's config.

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
    first = _compose(lines, {}, recipe_entry)
    config = _to_config(first)
    config.tolls = tolls
    check_emulated(config)
    config.train = build_recipe(config)
    train_lines = [str(o.input_line) for o in overrides if _is_train(o)]
    if train_lines:
        composed = _compose(lines + train_lines, config.train, recipe_entry)
        config.train = _resolved(composed.train, config.train)
    return config


def _parse(arguments: list[str]) -> list[Override]:
    for argument in arguments:
        if argument.startswith("-") or ("=" not in argument and not argument.startswith("~")):
            recipe = f" Did you mean recipe={argument}?" if argument in _options("recipe") else ""
            raise RequestError(
                f"got {argument}: settings are written key=value, no space around =, quotes around a value with spaces."
                f"{recipe} See `python -m cctrain --help`"
            )
    try:
        overrides = OverridesParser.create().parse_overrides(arguments)
    except HydraException as error:
        found = re.search(r"Error (?:when )?parsing override '(.*?)'", str(error))
        what = found[1] if found else " ".join(arguments)
        raise RequestError(
            f"cannot read {what}: put a value with special characters into quotes, 'key=\"a=b\"'"
        ) from error
    for override in overrides:
        if override.is_sweep_override():
            raise RequestError(
                f"{override.input_line}: one value a key (several: the verb campaign); a value with commas needs "
                "[brackets] or quotes"
            )
    return list(overrides)


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
    key = override.key_or_group
    groups = [path.name for path in CONF.iterdir() if path.is_dir()]
    value = override.value()
    if key in groups:
        if isinstance(value, (dict, list)):
            raise RequestError(f"{override.input_line}: allowed is {key}=NAME, one of {_listed(key)}")
        name = str(override.input_line).partition("=")[2].strip("'\"")
        is_path = key == "recipe" and ("/" in name or name.endswith((".yaml", ".yml")))
        if name not in _options(key) and not is_path:
            also = " or a file whose name ends in .yaml" if key == "recipe" else ""
            raise RequestError(f"{key}={name}: allowed is {_listed(key)}{also}.{did_you_mean(name, _options(key))}")
        return
    known = _keys(Config)
    if key not in known:
        same_end = [name for name in known if name.rpartition(".")[2] == key]
        meant = f" Did you mean {same_end[0]}?" if same_end else did_you_mean(key, [*known, *groups])
        raise RequestError(
            f"unknown key {key}.{meant} Keys are listed by `python -m cctrain --help`; those of the AutoModel recipe "
            "begin with train."
        )


def _keys(schema: Any, prefix: str = "") -> list[str]:
    keys: list[str] = []
    for spec in dataclasses.fields(schema):
        default = spec.default_factory() if spec.default_factory is not dataclasses.MISSING else None
        if dataclasses.is_dataclass(default):
            keys += _keys(default, f"{prefix}{spec.name}.")
        else:
            keys.append(prefix + spec.name)
    return keys


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
        raise RequestError(_explain(error, train)) from error


_WRONG_VALUES = {  # Hydra's words: the value, what is allowed, the key
    r"Value '(.*?)' of type '\w+' could not be converted to (\w+) full_key: (\S+)": "{}",
    r"Value '(.*?)' of type '\w+' is incompatible with type hint '(Union\[int, str\])' full_key: (\S+)": (
        "a whole number from 1, or auto"
    ),
    r"Value '(.*?)' is not a valid (bool) .*?full_key: (\S+)": "true or false",
    r"override [\w.]+=(null) (field) '.*?' is not Optional full_key: (\S+)": "a value",
    r"Invalid value '(.*?)', expected one of \[(.*?)\] full_key: (\S+)": "{}",
}


def _explain(error: Exception, train: dict[str, Any]) -> str:
    """Hydra's message in our words: what was got and the nearest key that exists."""
    causes = [str(e) for e in (error, error.__cause__) if e]
    text = " ".join(dict.fromkeys(re.sub(r"\s+", " ", cause).strip() for cause in causes))
    found = re.search(r"full_key: (train[\w.]*)", text)
    if found and "nterpolation" not in text and ("not in struct" in text or "not found" in text):
        key = found.group(1)
        return (
            f"the recipe has no key {key}.{did_you_mean(key, _paths(train, 'train'))} To add a new one write +{key}=..."
        )
    if "is not a ListConfig" in text:
        return f"{text.partition(' Invalid value')[0]}: a list is written in brackets, key=[a,b]"
    for pattern, allowed in _WRONG_VALUES.items():
        wrong = re.search(pattern, text)
        if wrong:
            kind = {"Integer": "a whole number", "Float": "a number"}.get(wrong[2], wrong[2])
            return f"{wrong[3]}={wrong[1]}: allowed is {allowed.format(kind)}"
    text = re.sub(r" ?Set the environment variable HYDRA_FULL_ERROR=1.*", "", text)
    return f"{text} (see `python -m cctrain --help` for the keys)"


def _paths(node: Any, prefix: str) -> list[str]:
    if not isinstance(node, dict):
        return [prefix]
    return [prefix] + [path for key, value in node.items() for path in _paths(value, f"{prefix}.{key}")]


def _escaped(node: Any) -> Any:
    """AutoModel resolves `${VAR}` itself, on the rank; keep OmegaConf from reading it as its own interpolation."""
    if isinstance(node, dict):
        return {key: _escaped(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_escaped(value) for value in node]
    if isinstance(node, str):  # OmegaConf reads a backslash before `${` as its escape, and two as a backslash
        return re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + "\\${", node)
    return node


def _resolved(node: DictConfig, train: dict[str, Any]) -> dict[str, Any]:
    try:
        resolved: dict[str, Any] = OmegaConf.to_container(node, resolve=True)  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        raise RequestError(_explain(error, train)) from error
    return resolved


def _to_config(composed: DictConfig) -> Config:
    try:
        config = OmegaConf.to_object(composed)
    except OmegaConfBaseException as error:
        if isinstance(error.__cause__, RequestError):
            raise error.__cause__ from None
        raise RequestError(_explain(error, {})) from error
    assert isinstance(config, Config)
    return config
