"""Toll profiles: what each operation costs more under CC, every number with its source; one schema, one strict loader.

A profile is YAML or JSON: `kind`, `schema_version`, `name`, `tolls`, and for its readers `notes` (lines of text) and
`made_of` (the machines measured). A toll has `value`, `interval` ([low, high] or null) and `source`; a value of null,
as a toll left out, is not known: nothing is paid for it. The tolls, in microseconds that CC adds:
- launch_us, graph_launch_us: to a launch. wait_us: to a wait for a stream, an event or the device.
- copy_DIRECTION_MEMORY_us: to a copy by its size, a table of [bytes, us]; see `copy_toll_us`.
- DIRECTION_MEMORY_blocks: true where an asynchronous copy waits for its stream to drain.
- alloc_host_us, alloc_device_us: to an allocation by the driver. collective_us: to a collective, on the GPU,
  beside the toll of its launch.
- host_ratio: time of host code, on over off. matmul_ratio: rate of matmul likewise, a control that nothing pays.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from cctrain.emulation.strict_yaml import read_yaml
from cctrain.errors import RequestError
from cctrain.nearest import did_you_mean
from cctrain.packaged import CONF
from cctrain.untrusted import got, number, printable, shown

KIND = "cctrain emulation profile"
SCHEMA_VERSION = 1

SCALARS = ("launch_us", "graph_launch_us", "wait_us", "alloc_host_us", "alloc_device_us", "collective_us")
TABLES = ("copy_h2d_pinned_us", "copy_h2d_pageable_us", "copy_d2h_pinned_us", "copy_d2h_pageable_us")
FLAGS = ("h2d_pinned_blocks", "d2h_pinned_blocks", "d2h_pageable_blocks")
RATIOS = ("host_ratio", "matmul_ratio")
TOLLS = (*SCALARS[:3], *TABLES, *FLAGS, *SCALARS[3:], *RATIOS)
"""Every toll, in the order of print."""

CLASSES: Mapping[str, tuple[str, ...]] = {
    "launch": ("launch_us",),
    "graph_launch": ("graph_launch_us",),
    "wait": ("wait_us",),
    "copy": (*TABLES, *FLAGS),
    "alloc": ("alloc_host_us", "alloc_device_us"),
    "collective": ("collective_us",),
    "host": ("host_ratio",),
}
"""What is paid together, alone or left out."""

ASSUMED = (
    "launch tolls are paid by the thread that calls",
    "a CUDA graph pays one toll, however many kernels it holds",
)
NOT_EMULATED = (
    "NVLink bandwidth",
    "tolls inside a CUDA graph, other than collectives'",
    "tolls that the GPU's front end pays",
    "tolls of copies that are handed over by the batch",
)
"""Both are printed beside every emulated or predicted figure."""


NO_GPU = "no GPU: each operator of this CPU paid the launch toll, which says nothing about any machine"
"""Beside every emulated figure of a CPU."""
NO_GPU_COUNTED = "no GPU: operators of this CPU are counted in place of launches, which says nothing about any machine"
"""Beside counts without tolls."""


def emulated_note(*, is_cpu: bool = False) -> str:
    """What an emulated figure is, rests on and leaves out, as text beside it."""
    return (
        "Emulated: tolls injected into a machine without CC, an estimate, never a measurement of CC. "
        f"Assumed: {'; '.join(ASSUMED)}. Not emulated: {'; '.join(NOT_EMULATED)}"
    ) + f". {NO_GPU[0].upper()}{NO_GPU[1:]}" * is_cpu


def why_faster(ci95: Sequence[float] | None) -> str:
    """What makes a keep ratio larger than 1, by its interval."""
    return "noise" if not ci95 or ci95[0] <= 1 else "another difference of the arms"


Points = tuple[tuple[int, float], ...]
"""Bytes and microseconds, bytes rising."""

_MOST_POINTS = 16
_MOST_COPY_BYTES = 1 << 40
_MOST_US, _MOST_COPY_US = 1e6, 1e9
_MOST_NAME, _MOST_TEXT, _MOST_NOTES = 100, 4000, 20
_BOUNDS = dict.fromkeys(SCALARS, (0.0, _MOST_US)) | {"host_ratio": (1.0, 10.0), "matmul_ratio": (0.01, 10.0)}


@dataclass(frozen=True, slots=True)
class Toll:
    """One number of a profile."""

    value: float | bool | Points | None
    """None: not known, nothing is paid."""
    interval: tuple[float, float] | None
    """Low and high of a number; None for tables and flags, and where none is known."""
    source: str


@dataclass(frozen=True, slots=True)
class Profile:
    """What CC costs on one machine, or is published to cost."""

    name: str
    tolls: Mapping[str, Toll]
    """By the names in TOLLS, all of them."""
    notes: tuple[str, ...] = ()

    @property
    def sha256(self) -> str:
        """Of all values and intervals: profiles with one hash pay the same, whatever their files look like."""
        numbers = {name: (toll.value, toll.interval) for name, toll in self.tolls.items()}
        return hashlib.sha256(json.dumps(numbers, sort_keys=True).encode()).hexdigest()

    def number(self, name: str) -> float:
        """A toll of SCALARS or RATIOS as it is paid: 0, or a ratio of 1, where it is not known."""
        value = self.tolls[name].value
        assert not isinstance(value, (bool, tuple)), name
        return value if value is not None else 1.0 if name in RATIOS else 0.0

    def points(self, name: str) -> Points:
        """A toll of TABLES; empty where it is not known."""
        value = self.tolls[name].value
        return value if isinstance(value, tuple) else ()

    def blocks(self, name: str) -> bool:
        """A toll of FLAGS; False where it is not known."""
        return self.tolls[name].value is True

    def classes(self) -> tuple[str, ...]:
        """Those of CLASSES that have something to pay."""
        return tuple(name for name, tolls in CLASSES.items() if any(map(self._is_paid, tolls)))

    def _is_paid(self, name: str) -> bool:
        if name in TABLES:
            return any(us > 0 for _, us in self.points(name))
        return self.blocks(name) if name in FLAGS else self.number(name) > (1 if name in RATIOS else 0)

    def of_classes(self, classes: Collection[str]) -> Profile:
        """This profile with nothing to pay for any other class."""
        kept = {toll for name in classes for toll in CLASSES[name]}
        left_out = Toll(None, None, "left out")
        return Profile(
            self.name, {name: toll if name in kept else left_out for name, toll in self.tolls.items()}, self.notes
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON that `parse_profile` reads back."""
        tolls = {name: _plain(toll) for name, toll in self.tolls.items()}
        facts = {"kind": KIND, "schema_version": SCHEMA_VERSION, "name": self.name, "notes": list(self.notes)}
        return {**facts, "tolls": tolls}


def _plain(toll: Toll) -> dict[str, Any]:
    value = [list(point) for point in toll.value] if isinstance(toll.value, tuple) else toll.value
    return {"value": value, "interval": toll.interval and list(toll.interval), "source": toll.source}


def copy_toll_us(points: Sequence[tuple[int, float]], num_bytes: float) -> float:
    """The toll of a copy of `num_bytes` by a table: straight lines between its points, level before the first, along
    the last line's slope after the last, never below 0. One point is the toll of every size, none is no toll."""
    if not points:
        return 0.0
    if len(points) == 1 or num_bytes <= points[0][0]:
        return points[0][1]
    segments = list(pairwise(points))
    (left, low), (right, high) = next((each for each in segments if num_bytes <= each[1][0]), segments[-1])
    return max(0.0, low + (high - low) * (num_bytes - left) / (right - left))


def load_profile(name_or_path: str) -> Profile:
    """The profile `name_or_path`: one of those that come with cctrain, or a .yaml or .json file.

    Raises RequestError, in one printable line, for anything else.
    """
    is_path = "/" in name_or_path or name_or_path.endswith((".yaml", ".yml", ".json"))
    packaged = sorted(path.stem for path in (CONF / "tolls").glob("*.yaml"))
    if not is_path and name_or_path not in packaged:
        raise RequestError(
            f"no toll profile {shown(name_or_path)}: tolls= (or --tolls) takes {', '.join(packaged)}, or a file "
            f"whose name ends in .yaml or .json.{did_you_mean(name_or_path, packaged)}"
        )
    where = f"toll profile {shown(Path(name_or_path))}"
    try:
        return parse_profile(
            read_yaml(Path(name_or_path).expanduser() if is_path else CONF / "tolls" / f"{name_or_path}.yaml")
        )
    except FileNotFoundError as error:
        stem = Path(name_or_path).stem
        near = f" Did you mean {stem}?" if stem in packaged else did_you_mean(stem, packaged)
        raise RequestError(f"{where} cannot be read: {error.strerror}.{near}") from error
    except OSError as error:
        raise RequestError(f"{where} cannot be read: {error.strerror}") from error
    except (ValueError, RuntimeError) as error:  # RuntimeError: ~ of an unknown user
        raise RequestError(f"{where}: {printable(str(error))}") from error


def parse_profile(node: Any) -> Profile:
    """A profile from plain JSON, as `Profile.to_dict` gives it. Raises ValueError where it is none."""
    content = _mapping(node, "the file")
    if content.get("kind") != KIND:
        raise ValueError(f"kind is {shown(content.get('kind'))}, not {KIND}, which `tolls --diff` writes")
    version = content.get("schema_version")
    if version != SCHEMA_VERSION or isinstance(version, bool):
        raise ValueError(f"schema_version is {got(version)}, this cctrain reads {SCHEMA_VERSION}")
    _refuse_others(content, ("kind", "schema_version", "name", "notes", "made_of", "tolls"), "the file")
    _mapping(content.get("made_of") or {}, "made_of")
    tolls = _mapping(content.get("tolls"), "tolls")
    _refuse_others(tolls, TOLLS, "tolls")
    notes = content.get("notes") or []
    if not isinstance(notes, list) or len(notes) > _MOST_NOTES:
        raise ValueError(f"notes is {shown(notes)}, not a list of at most {_MOST_NOTES} lines")
    return Profile(
        name=_text(content.get("name"), "name", _MOST_NAME),
        tolls={name: _toll(name, tolls[name]) if name in tolls else _UNKNOWN for name in TOLLS},
        notes=tuple(_text(note, "a note", _MOST_TEXT) for note in notes),
    )


_UNKNOWN = Toll(None, None, "not in the profile")


def _toll(name: str, node: Any) -> Toll:
    toll = _mapping(node, name)
    _refuse_others(toll, ("value", "interval", "source"), name)
    value = _value(name, toll.get("value"))
    interval = toll.get("interval")
    if interval is not None:
        interval = _interval(name, interval, value)
    source = toll.get("source")
    if value is None and source in (None, ""):
        return Toll(None, None, "not known")
    return Toll(value, interval, _text(source, f"source of {name}", _MOST_TEXT))


def _value(name: str, node: Any) -> float | bool | Points | None:
    if node is None:
        return None
    if name in FLAGS:
        if not isinstance(node, bool):
            raise ValueError(f"value of {name} is {shown(node)}, allowed is true or false")
        return node
    return _points(name, node) if name in TABLES else number(node, f"value of {name}", *_BOUNDS[name])


def _points(name: str, node: Any) -> Points:
    if not isinstance(node, list) or not 1 <= len(node) <= _MOST_POINTS:
        raise ValueError(f"value of {name} is {shown(node)}, not a list of 1 to {_MOST_POINTS} pairs [bytes, us]")
    points = []
    for pair in node:
        if not isinstance(pair, list) or len(pair) != 2:
            raise ValueError(f"value of {name} holds {shown(pair)}, not a pair [bytes, us]")
        num_bytes = number(pair[0], f"bytes of {name}", 0, _MOST_COPY_BYTES)
        if not num_bytes.is_integer():
            raise ValueError(f"bytes of {name} is {num_bytes}, not a whole number")
        points.append((int(num_bytes), number(pair[1], f"microseconds of {name}", 0.0, _MOST_COPY_US)))
    if any(right <= left for (left, _), (right, _) in pairwise(points)):
        raise ValueError(f"bytes of {name} do not rise from point to point")
    return tuple(points)


def _interval(name: str, node: Any, value: Any) -> tuple[float, float]:
    if name not in _BOUNDS:
        raise ValueError(f"interval of {name}: tables and flags have none, allowed is null")
    if not isinstance(node, list) or len(node) != 2:
        raise ValueError(f"interval of {name} is {shown(node)}, not [low, high]")
    low, high = (number(end, f"interval of {name}", *_BOUNDS[name]) for end in node)
    if value is None or not low <= value <= high:
        raise ValueError(f"interval of {name} is [{low:g}, {high:g}], which does not hold its value {value}")
    return low, high


def _text(node: Any, what: str, most: int) -> str:
    if not isinstance(node, str) or not node.strip() or len(node) > most or not node.isprintable():
        raise ValueError(f"{what} is {shown(node)}, not a line of 1 to {most} characters")
    return node


def _mapping(node: Any, what: str) -> dict[str, Any]:
    if not isinstance(node, dict) or not all(isinstance(key, str) for key in node):
        raise ValueError(f"{what} is {shown(node)}, not a mapping of names")
    return node


def _refuse_others(node: Mapping[str, Any], allowed: Collection[str], what: str) -> None:
    for name in node:
        if name not in allowed:
            meant = did_you_mean(name, allowed)
            raise ValueError(f"{what} holds {shown(name)}; allowed is {', '.join(allowed)}.{meant}")
