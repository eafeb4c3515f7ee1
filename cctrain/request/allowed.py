"""What a recipe may import. AutoModel's ConfigNode imports every `_target_` and `*_fn` it meets while it is being
built, from any module on the path, and some other keys later, so a recipe file is code. The names in
allowed_targets.txt are what recipes need; everything else is refused before AutoModel sees it.

What this cannot hold: the code of AutoModel itself, some of whose model classes load their hub repository's code.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from cctrain.errors import RequestError
from cctrain.nearest import did_you_mean
from cctrain.redaction import is_secret_name, redacted, secret_paths

ALLOWED_TARGETS = frozenset(
    line
    for line in Path(__file__).with_name("allowed_targets.txt").read_text(encoding="utf-8").splitlines()
    if not line.startswith("#")
)

_IMPORTING_KEYS = ("_target_", "tp_plan", "megatron_fsdp_unit_modules")
"""Keys whose values AutoModel imports, beside those that end in _fn."""
_CODE_KEYS = ("trust_remote_code", "use_kernels", "kernel_config", "allow_all_kernels", "allow_legacy_pickle_restore")
"""Keys that run code which came with a download or a checkpoint."""
_NAMES = ("pretrained_model_name_or_path", "config")
_FALSE = (None, False, 0, "false", "False", "none", "None", "0", "")
_WELL_FORMED = re.compile(
    r"(?:[^$'\"(\[{]"  # no quotes and brackets beside an interpolation: the whole could become a literal
    r"|\$\{\s*(?:oc\.env:)?\s*[A-Za-z_][\w.]*\s*(?:,[\w./:@ -]*)?\}"
    r"|\$[A-Za-z_][\w.]*(?![\w.$]))*"
)
"""Text whose interpolations AutoModel's two passes, braces and then bare names, cannot put together to another one."""
_IS_SECRET = (
    "holds what looks like a secret, which would end up in the run's files and logs; libraries read their keys from "
    "the environment by themselves: remove it"
)
_INTERPOLATION = re.compile(r"\$\{([^}]*)|\$([A-Za-z_][A-Za-z0-9_.]*)")


def check_recipe(recipe: dict[str, Any], allow_targets: Iterable[str] = ()) -> None:
    """Raise RequestError at the first key of `recipe` that would run code it may not, or read a secret."""
    allowed = ALLOWED_TARGETS | set(allow_targets)
    for path in secret_paths(recipe, "train"):
        raise RequestError(f"{path} {_IS_SECRET}")
    for path, key, value in _walk(recipe, "train"):
        if isinstance(value, str):
            _check_text(path, key, value)
        elif isinstance(value, dict):
            _check_trusted_by_name(path, value, allowed)
        if key in _IMPORTING_KEYS or key.endswith("_fn"):
            _check_imports(path, value, allowed)
        elif key in _CODE_KEYS and value not in _FALSE and key not in allowed:
            raise RequestError(
                f"{path}={value}: it runs code that comes with a download; allowed is false. Override {path}=false, "
                f"or if you trust it add 'allow_targets=[{key}]'"
            )
        elif key == "weights_only" and value is not True:
            raise RequestError(f"{path}={value}: unpickling a download runs its code; allowed is true")
        elif key.endswith("attn_implementation") and "/" in str(value):
            raise RequestError(f"{path}={value}: a kernel fetched from the hub is code; allowed is a built-in: sdpa")
        elif key == "packing_strategy" and value not in ("thd", "neat", None):
            raise RequestError(f"{path}={value}: allowed is thd or neat")


def _check_text(path: str, key: str, value: str) -> None:
    """AutoModel resolves variables in text and evaluates what is a Python literal, twice: what was checked here must be
    what it sees then."""
    try:
        literal = ast.literal_eval(value.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        literal = None
    items = literal if isinstance(literal, (list, tuple)) else [literal]
    if any(isinstance(item, (str, bytes, dict, set, list, tuple)) for item in items):
        raise RequestError(f"{path}: its text is a Python literal ({value[:60]}); write it as YAML")
    if "$" in value and (key in _NAMES or not _WELL_FORMED.fullmatch(value)):
        raise RequestError(
            f"{path}={value[:60]}: allowed is ${{NAME}} or ${{NAME,default}}, and none in a model's name"
        )
    _check_interpolation(path, value)


def _check_trusted_by_name(path: str, section: dict[str, Any], allowed: frozenset[str]) -> None:
    """AutoModel runs the code of nvidia/ repositories unless it is told not to."""
    names = [section.get(key) for key in _NAMES]
    config = section.get("config")
    names += [config.get("pretrained_model_name_or_path")] if isinstance(config, dict) else []
    is_nvidia = any(isinstance(name, str) and name.startswith("nvidia/") for name in names)
    if is_nvidia and "trust_remote_code" not in section and "trust_remote_code" not in allowed:
        raise RequestError(
            f"{path}: AutoModel trusts the code in nvidia/ repositories unless told not to: add "
            f"+{path}.trust_remote_code=false, or if you trust it 'allow_targets=[trust_remote_code]'"
        )


def refuse_secret_interpolations(arguments: Iterable[str]) -> None:
    """Raise RequestError for an override that would copy a secret of the environment into the run's files."""
    for argument in arguments:
        key, _, value = argument.partition("=")
        _check_interpolation(key, value)
        if redacted(argument) != argument:
            raise RequestError(f"{key} {_IS_SECRET}")


def _walk(node: Any, path: str) -> Iterator[tuple[str, str, Any]]:
    if isinstance(node, dict):
        for name, value in node.items():
            yield f"{path}.{name}", str(name), value
            yield from _walk(value, f"{path}.{name}")
    elif isinstance(node, list):
        for index, value in enumerate(node):
            if isinstance(value, str):
                yield f"{path}[{index}]", "", value
            yield from _walk(value, f"{path}[{index}]")


def _check_imports(path: str, value: Any, allowed: frozenset[str]) -> None:
    """A mapping's own _target_ is met when the walk comes to it; anything else must be a listed name, or several."""
    for name in value if isinstance(value, list) else [value]:
        if name is not None and not isinstance(name, dict) and not (isinstance(name, str) and name in allowed):
            raise RequestError(
                f"{path}={name}: not on the list of names a recipe may import (cctrain/request/allowed_targets.txt)."
                f"{did_you_mean(str(name), allowed)} If you trust this code, add 'allow_targets=[{name}]'"
            )


def _check_interpolation(path: str, value: str) -> None:
    for match in _INTERPOLATION.finditer(value):
        inner = (match[1] if match[1] is not None else match[2]).removeprefix("oc.env:").strip()
        name = inner.partition(",")[0].strip()
        if "$" in inner:
            raise RequestError(f"{path}: an environment variable inside another's braces ({value[:60]}) is not allowed")
        if is_secret_name(name.upper()):
            raise RequestError(
                f"{path} reads the environment variable {name}, which looks like a secret and would end up in logs; "
                "libraries read their keys from the environment by themselves: remove it"
            )
