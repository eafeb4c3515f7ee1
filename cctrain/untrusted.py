"""Text and trees of files that somebody else wrote, made safe to compare, print and render: bounded, and printable.

Names that are compared must be good as they are, or the file is refused; what is there to be read only is cleaned.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LARGEST = 1e15
"""Numbers of this size and more are refused, infinity among them."""
_MOST_NAME, _MOST_TEXT, _MOST_DEPTH, _MOST_NODES = 300, 2000, 12, 5000


def text_of(path: Path, most_bytes: int) -> str:
    """The content of the file `path`. Raises OSError, and ValueError where it is empty, too large or no text file."""
    if path.is_dir():
        raise ValueError("it is a directory, not a file")
    if path.exists() and not path.is_file():  # reading a pipe would wait for ever
        raise ValueError("it is no file at all")
    with path.open("rb") as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        size = f"{most_bytes >> 20} MiB" if most_bytes >> 20 else f"{most_bytes >> 10} KiB"
        raise ValueError(f"it is larger than {size}")
    if not content.strip():
        raise ValueError("it is empty")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is no text in UTF-8, from byte {error.start} on") from error


def json_of(path: Path, most_bytes: int) -> Any:
    """The same as strict JSON. Raises OSError and ValueError."""
    try:
        return json.loads(text_of(path, most_bytes), parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise ValueError(f"it is no JSON, from line {error.lineno}, column {error.colno} on") from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is no number of strict JSON")


def line(node: Any, what: str) -> str:
    """`node`, where it is a printable line of bearable length. Raises ValueError for anything else."""
    if not isinstance(node, str) or len(node) > _MOST_NAME or not node.isprintable():
        raise ValueError(f"{printable(what)} is {shown(node)}, not a line of at most {_MOST_NAME} characters")
    return node


def expect(node: Any, kind: type, what: str) -> Any:
    """`node`, where it is a `kind`: dict or list. Raises ValueError for anything else."""
    if not isinstance(node, kind):
        raise ValueError(f"{what} is {shown(node)}, not {'an object' if kind is dict else 'a list'}")
    return node


def number(node: Any, what: str, low: float = 0.0, high: float = LARGEST) -> float:
    """`node`, where it is a number from `low` to `high`. Raises ValueError for anything else."""
    if isinstance(node, bool) or not isinstance(node, (int, float)) or not low <= node <= high:
        raise ValueError(f"{what} is {got(node)}, allowed is a number from {low:g} to {high:g}")
    return float(node)


def check_run(node: dict[str, Any], newest: int) -> None:
    """Raises ValueError for what is no run's record, and for one that a later cctrain wrote."""
    if "run_id" not in node or "kind" in node:
        of_what = f" but {shown(node['kind'])}" if isinstance(node.get("kind"), str) else ", as it has no run_id"
        raise ValueError(f"it is no run's record{of_what}")
    version = node.get("schema_version")
    if isinstance(version, bool) or not isinstance(version, int) or not 1 <= version <= newest:
        raise ValueError(f"schema_version is {shown(version)}, allowed is 1 to {newest}")


def got(node: Any) -> str:
    """As `shown`, with texts called so: 18.6 in quotes looks like a number."""
    return f"the text {shown(node) or 'of no letters'}" if isinstance(node, str) else shown(node)


def strict(node: Any, what: str) -> Any:
    """`node` as it is, where all of its names and texts are printable and it is of a bearable size."""
    for path, value in _walk(node, what):
        if isinstance(value, str):
            line(value, path)
        elif isinstance(value, (int, float)) and not abs(value) < LARGEST:
            raise ValueError(f"{path} is too large a number")
    return node


def _walk(node: Any, path: str, depth: int = 0) -> Iterator[tuple[str, Any]]:
    if depth > _MOST_DEPTH:
        raise ValueError(f"{path} is nested too deeply")
    if isinstance(node, dict):
        for key, value in node.items():
            line(key, f"a name in {path}")
            yield from _walk(value, f"{path}.{key}", depth + 1)
    elif isinstance(node, list):
        for value in node:
            yield from _walk(value, path, depth + 1)
    yield path, node


def cleaned(node: Any) -> dict[str, Any]:
    """A mapping for people to read: unprintable characters replaced, long texts and what is too deep cut off."""
    left = [_MOST_NODES]

    def clean(node: Any, depth: int) -> Any:
        left[0] -= 1
        if depth > _MOST_DEPTH or left[0] < 0:
            return "..."
        if isinstance(node, str):
            return printable(node)
        if isinstance(node, dict):
            return {printable(key): clean(value, depth + 1) for key, value in node.items()}
        if isinstance(node, list):
            return [clean(value, depth + 1) for value in node]
        return node if not isinstance(node, (int, float)) or abs(node) < LARGEST else None

    return clean(node, 0) if isinstance(node, dict) else {}


def printable(text: str) -> str:
    """One line that is safe for a terminal and a file in UTF-8, of bounded length."""
    cut = text if len(text) <= _MOST_TEXT else f"{text[:_MOST_TEXT]}..."
    return "".join(letter if letter.isprintable() else " " if letter.isspace() else "\ufffd" for letter in cut)


def shown(node: Any) -> str:
    """Short, and safe for a terminal, whatever it is."""
    text = str(node) if isinstance(node, Path) else node
    if not isinstance(text, str) or not text.isprintable():
        try:
            text = json.dumps(text)
        except (TypeError, ValueError, RecursionError):  # of YAML: a date, bytes, a list in itself
            text = ascii(text)
    most = 500 if isinstance(node, Path) else 60
    return text if len(text) <= most else f"{text[:most]}..."
