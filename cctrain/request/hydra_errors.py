"""Errors of Hydra and OmegaConf in our words: what was got, what is allowed, the nearest key that exists."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from enum import EnumMeta
from typing import Any, get_args, get_origin, get_type_hints

from cctrain.config import Config
from cctrain.nearest import did_you_mean

_ALLOWED = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    int | str: "a whole number from 1, or auto",
}


def own_keys(schema: Any = Config, prefix: str = "") -> dict[str, Any]:
    """Every key of ours, in the order of cctrain/config.py, with its type."""
    keys: dict[str, Any] = {}
    for name, kind in get_type_hints(schema).items():
        if dataclasses.is_dataclass(kind):
            keys |= own_keys(kind, f"{prefix}{name}.")
        else:
            keys[prefix + name] = kind
    return keys


def explain(error: Exception, lines: Sequence[str], train: dict[str, Any]) -> str:
    """What is wrong with the overrides `lines` of our keys and of those of the recipe `train`."""
    causes = [str(e) for e in (error, error.__cause__) if e]
    text = " ".join(dict.fromkeys(re.sub(r"\s+", " ", cause).strip() for cause in causes))
    found = re.search(r"full_key: ([^\s\[]+)", text)
    key = found[1] if found else ""
    given = next((line for line in reversed(lines) if line.lstrip("+").startswith(f"{key}=")), key)
    missing = re.search(r"(?:Interpolation key|Environment variable) '(.*?)' not found", text)
    if missing:
        return f"{given} refers to {missing[1]}, which does not exist"
    if key in own_keys():
        return f"{given}: allowed is {_allowed(own_keys()[key])}"
    return _of_the_recipe(text, key, given, train) or re.sub(r" ?(Set the environment variable|full_key:).*", "", text)


def _allowed(kind: Any) -> str:
    kinds = [each for each in get_args(kind) if each is not type(None)]
    if isinstance(kind, EnumMeta):
        return ", ".join(kind.__members__)
    if get_origin(kind) is list:
        return "a list in brackets, [a,b]"
    return _ALLOWED[kind] if kind in _ALLOWED else _allowed(kinds[0])


def _of_the_recipe(text: str, key: str, given: str, train: dict[str, Any]) -> str | None:
    """What is wrong with an override of a key of the recipe; None for what is not known to go wrong."""
    there = re.search(r"An item is already at '(.*?)'", text)
    if there:
        return f"the recipe has the key {there[1]} already: write {there[1]}=..., without the +"
    other = re.search(r"The value of '(.*?)' is (.*?) and not", text)
    if other:
        return f"{other[1]} is {other[2]}: to drop it write ~{other[1]}"
    gone = re.search(r"Could not delete from config. '(.*?)' does not exist", text)
    unknown = gone[1] if gone else key if "not in struct" in text or "not found" in text else None
    if unknown:
        more = "" if gone else f" To add a new one write +{unknown}=..."
        return f"the recipe has no key {unknown}.{did_you_mean(unknown, _paths(train, 'train'))}{more}"
    if "Cannot merge DictConfig with ListConfig" in text:
        if "={" in given:
            return f"{given}: it has a list where the recipe has a mapping, or the reverse"
        return f"{given}: allowed is {'a mapping, {a:1}' if '=[' in given else 'a list in brackets, [a,b]'}"
    return None


def _paths(node: Any, prefix: str) -> list[str]:
    if not isinstance(node, dict):
        return [prefix]
    return [prefix] + [path for key, value in node.items() for path in _paths(value, f"{prefix}.{key}")]
