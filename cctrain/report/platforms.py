"""The machines that the runs ran on, side by side: what differs, and what does not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cctrain.comparison.compare import Answer
from cctrain.load import Run

_MOST_ROWS, _MOST_VALUES = 400, 3
_IDENTITY = ("gpu", "num_gpus", "precision", "versions")
"""What of `identity` is of the machine, and not of the recipe."""
_OF_ONE_RUN = ("attestation.nonce", "attestation.gpus")
"""What of `platform` is of one run by design, kilobytes of it, and so no difference between machines."""


@dataclass(frozen=True, slots=True)
class Row:
    """One fact, a value a column."""

    name: str
    values: tuple[str, ...]

    @property
    def is_alike(self) -> bool:
        """Whether all columns say the same."""
        return len(set(self.values)) == 1


def platforms(answer: Answer) -> tuple[list[str], list[Row]]:
    """The modes as columns, and the facts of their machines."""
    columns: dict[str, list[Run]] = {}
    for run in answer.runs:
        columns.setdefault({"off": "CC off", "on": "CC on"}.get(run.mode, run.mode), []).append(run)
    facts = [_facts(runs) for runs in columns.values()]
    names = dict.fromkeys(name for each in facts for name in each)
    rows = [Row(name, tuple(each.get(name, "not there") for each in facts)) for name in names]
    return list(columns), rows[:_MOST_ROWS]


def _facts(runs: Sequence[Run]) -> dict[str, str]:
    """Each leaf's values over the runs, most often one."""
    values: dict[str, dict[str, None]] = {}
    for run in runs:
        own = {name: run.identity[name] for name in _IDENTITY if name in run.identity}
        for name, value in (*_leaves(run.platform, ""), *_leaves(own, "identity")):
            if name not in _OF_ONE_RUN:
                values.setdefault(name, {})[value] = None
    return {name: _joined(list(found)) for name, found in values.items()}


def _joined(values: list[str]) -> str:
    more = len(values) - _MOST_VALUES
    return ", ".join(values[:_MOST_VALUES]) + (f" and {more} more" if more > 0 else "")


def _leaves(node: Any, path: str) -> list[tuple[str, str]]:
    if isinstance(node, dict) and node:
        return [leaf for key, child in node.items() for leaf in _leaves(child, f"{path}.{key}" if path else str(key))]
    return [(path, node if isinstance(node, str) else json.dumps(node))]
