"""Changes of a recipe, and the command line that makes them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any


def changed(recipe: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe with the dotted keys of `changes` set."""
    new = copy.deepcopy(dict(recipe))
    for key, value in changes.items():
        *sections, last = key.split(".")
        section = new
        for name in sections:
            if not section.get(name):
                section[name] = {}
            section = section[name]
        section[last] = value
    return new


def overrides(recipe: Mapping[str, Any], changes: Mapping[str, Any]) -> tuple[str, ...]:
    """The arguments of `python -m cctrain` that make `changes`: a key that the recipe does not have is added with +."""
    return tuple(
        f"{'' if _has(recipe, key) else '+'}train.{key}={str(value).lower() if isinstance(value, bool) else value}"
        for key, value in changes.items()
    )


def _has(recipe: Mapping[str, Any], key: str) -> bool:
    node: Any = recipe
    for name in key.split("."):
        if not isinstance(node, Mapping) or name not in node:
            return False
        node = node[name]
    return True
