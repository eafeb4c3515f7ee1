"""The machines that the runs ran on, side by side: what differs, and what does not."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cctrain.comparison.compare import Answer
from cctrain.load import Run

_MOST_ROWS, _MOST_VALUES = 400, 3
_IDENTITY = ("gpu", "num_gpus", "precision", "versions")
"""What of `identity` is of the machine, and not of the recipe."""
_OF_ONE_RUN = ("attestation.nonce", "attestation.gpus")
"""What of `platform` is of one run by design, kilobytes of it, and so no difference between machines."""
_OF_A_MOMENT = ("current", "used_bytes")
"""Keys of what changes from minute to minute: clocks, and what is taken of SWIOTLB."""
_UNKNOWN = "null"


@dataclass(frozen=True, slots=True)
class Row:
    """One fact, a value a column."""

    name: str
    values: tuple[str, ...]

    @property
    def known(self) -> tuple[str, ...]:
        """Each value once; an unknown one is none."""
        return tuple(dict.fromkeys(value for value in self.values if value != _UNKNOWN))

    @property
    def kind(self) -> str:
        """unlike, partly (known of some columns alone) or alike."""
        return "unlike" if len(self.known) > 1 else "partly" if self.known and _UNKNOWN in self.values else "alike"


def platforms(answer: Answer) -> tuple[list[str], list[Row]]:
    """The modes as columns, and the facts of their machines."""
    columns: dict[str, list[Run]] = {}
    for run in answer.runs:
        columns.setdefault({"off": "CC off", "on": "CC on"}.get(run.mode, run.mode), []).append(run)
    facts = [_facts(runs) for runs in columns.values()]
    names = dict.fromkeys(name for each in facts for name in each)
    wholes = {whole for name in names for whole in _wholes(name)}  # unknown or empty, where others have parts
    rows = [Row(name, tuple(_value(each, name) for each in facts)) for name in names if name not in wholes]
    return list(columns), rows[:_MOST_ROWS]


def _wholes(name: str) -> list[str]:
    """What a fact is a part of."""
    return [name[:at] for at, letter in enumerate(name) if letter == "."]


def _value(facts: Mapping[str, str], name: str) -> str:
    """Parts of what is unknown are unknown too."""
    is_unknown = any(facts.get(whole) == _UNKNOWN for whole in _wholes(name))
    return facts.get(name, _UNKNOWN if is_unknown else "not there")


def _facts(runs: Sequence[Run]) -> dict[str, str]:
    """Each leaf's values over the runs, most often one."""
    values: dict[str, dict[str, None]] = {}
    for run in runs:
        own = {name: run.identity[name] for name in _IDENTITY if name in run.identity}
        for name, value in (*_leaves(_lasting(run.platform), ""), *_leaves(own, "identity")):
            if name not in _OF_ONE_RUN:
                values.setdefault(name, {})[value] = None
    return {name: _joined([value for value in found if value != _UNKNOWN]) for name, found in values.items()}


def _joined(values: list[str]) -> str:
    more = len(values) - _MOST_VALUES
    return ", ".join(values[:_MOST_VALUES] or [_UNKNOWN]) + (f" and {more} more" if more > 0 else "")


def _lasting(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _lasting(child) for key, child in node.items() if key not in _OF_A_MOMENT}
    return [_lasting(child) for child in node] if isinstance(node, list) else node


def _leaves(node: Any, path: str) -> list[tuple[str, str]]:
    if isinstance(node, dict) and node:
        return [leaf for key, child in node.items() for leaf in _leaves(child, f"{path}.{key}" if path else str(key))]
    return [(path, node if isinstance(node, str) else json.dumps(node))]
