"""`tolls.json`: what was measured, in frozen dataclasses and strict JSON; and reading a file that others wrote.

History of the format:
  1  first version: a value is the median of the blocks of one process
  2  several processes: a value is the undisturbed one, its interval is from process to process
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cctrain.errors import RequestError
from cctrain.untrusted import expect, json_of, number, shown

SCHEMA_VERSION = 2
_KIND = "tolls"
_MOST_BYTES = 4 << 20
_MOST_CHARACTERS = 200
_MODES = ("off", "on", "emulated", "unknown")

Facts = dict[str, str | int | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What one operation takes, or the rate it reaches."""

    name: str
    unit: str
    value: float
    """What it takes undisturbed: the best of `process_values`."""
    interval: tuple[float, float] | None
    """95 % interval of a process's value, Student's t of their logarithms; null where only one measured it."""
    num_blocks: int
    """Of all processes. A block is the mean of calls timed together."""
    conditions: Facts
    """What else the value depends on: bytes, memory, direction, number of arguments..."""
    process_values: tuple[float, ...] = ()
    """Of each process that measured it, the tenth percentile of its blocks; of a rate, the ninetieth."""
    plain_value: float | None = None
    """Where tolls were injected, the same without them, in the same processes in turns; null where they were not."""
    plain_process_values: tuple[float, ...] = ()

    @property
    def key(self) -> tuple[Any, ...]:
        """Name and conditions: equal for readings of the same thing on two machines."""
        return (self.name, *sorted(self.conditions.items()))


def is_rate(unit: str) -> bool:
    """Whether more is better: GB/s and TFLOP/s, not us and ns."""
    return unit.endswith("/s")


@dataclass(frozen=True, slots=True, kw_only=True)
class TollsRecord:
    """One run of the verb."""

    mode: str
    """off, on, or unknown: what the machine was seen to be; emulated: tolls were injected."""
    tolls: Facts | None = None
    """When emulated, the profile's `name` and the `sha256` of its content."""
    identity: Facts
    """What must match before two files are compared."""
    measured_at: str
    duration_s: float | None = None
    """From the first process's start to the last one's end."""
    readings: tuple[Reading, ...]
    waived: dict[str, str] = field(default_factory=dict)
    """Family -> why this machine cannot measure it."""
    failed: dict[str, str] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    """What `cctrain/platform/machine.py` observed."""
    kind: str = _KIND
    schema_version: int = SCHEMA_VERSION


def read_tolls(path: Path) -> TollsRecord:
    """The record in a file, `machine` left out. Raises RequestError for one that is not of this verb."""
    try:
        return _parse_record(json_of(path, _MOST_BYTES))
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise RequestError(f"{path} is not a file that `tolls` wrote: {error}") from error


def _parse_record(node: Any) -> TollsRecord:
    node = expect(node, dict, "the file")
    if node.get("kind") != _KIND:
        raise ValueError(f"kind is {shown(node.get('kind'))}, not {_KIND}")
    if node.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(f"schema_version is {shown(node.get('schema_version'))}, this cctrain reads {SCHEMA_VERSION}")
    if node.get("mode") not in _MODES:
        raise ValueError(f"mode is {shown(node.get('mode'))}, not one of {', '.join(_MODES)}")
    readings = tuple(parse_reading(entry) for entry in expect(node.get("readings"), list, "readings"))
    if len({reading.key for reading in readings}) < len(readings):
        raise ValueError("it holds a reading twice")
    return TollsRecord(
        mode=node["mode"],
        tolls=_facts(node["tolls"], "tolls") if node.get("tolls") else None,
        identity=_facts(node.get("identity"), "identity"),
        measured_at=_text(node.get("measured_at"), "measured_at"),
        readings=readings,
    )


def parse_reading(node: Any) -> Reading:
    """A reading from JSON. Raises ValueError where it is none."""
    node = expect(node, dict, "a reading")
    name = _text(node.get("name"), "name")
    interval = node.get("interval")
    if interval is not None:
        low, high = (number(value, f"interval of {name}") for value in _pair(interval, name))
        interval = (low, high)
    plain = node.get("plain_value")
    return Reading(
        name=name,
        unit=_text(node.get("unit"), f"unit of {name}"),
        value=number(node.get("value"), f"value of {name}"),
        interval=interval,
        num_blocks=int(number(node.get("num_blocks"), f"num_blocks of {name}")),
        conditions=_facts(node.get("conditions"), f"conditions of {name}"),
        process_values=_numbers(node, "process_values", name),
        plain_value=None if plain is None else number(plain, f"plain_value of {name}"),
        plain_process_values=_numbers(node, "plain_process_values", name),
    )


def _numbers(node: Any, key: str, name: str) -> tuple[float, ...]:
    values = expect(node.get(key, []), list, f"{key} of {name}")
    return tuple(number(value, f"{key} of {name}") for value in values)


def _pair(node: Any, name: str) -> list[Any]:
    if not isinstance(node, list) or len(node) != 2:
        raise ValueError(f"interval of {name} is {shown(node)}, not two numbers")
    return node


def _text(node: Any, what: str) -> str:
    if not isinstance(node, str) or not node or len(node) > _MOST_CHARACTERS or not node.isprintable():
        raise ValueError(f"{what} is {shown(node)}, not a line of text")
    return node


def _facts(node: Any, what: str) -> Facts:
    facts = expect(node, dict, what)
    for key, value in facts.items():
        _text(key, what)
        if isinstance(value, str):
            _text(value, f"{key} in {what}")
        elif value is not None:
            number(value, f"{key} in {what}")
            if not isinstance(value, int):
                raise ValueError(f"{key} in {what} is {shown(value)}, not a whole number")
    return dict(facts)
