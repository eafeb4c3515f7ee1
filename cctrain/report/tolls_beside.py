"""The tolls that emulated runs paid, beside what the seed post publishes of the same operations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from cctrain.comparison.groups import labels_of
from cctrain.load import Run
from cctrain.tolls.published import PUBLISHED, SEED
from cctrain.tolls.record import Facts
from cctrain.tolls.table import number, size

_OF: dict[str, tuple[str, Facts]] = {
    "launch_us": ("launch_pipelined", {"via": "torch"}),
    "wait_us": ("launch_wait", {"via": "torch"}),
    "copy_h2d_pinned_us": ("copy", {"direction": "h2d", "memory": "pinned"}),
    "copy_h2d_pageable_us": ("copy", {"direction": "h2d", "memory": "pageable"}),
    "d2h_pinned_blocks": ("copy_issue", {"direction": "d2h", "memory": "pinned"}),
    "collective_us": ("all_reduce", {"launch": "eager", "bytes": 1 << 10}),
}
"""The published reading that a toll follows from: CC off -> on, in us or GB/s; x: on over off; +: what CC adds."""


def profiles(runs: Sequence[Run]) -> dict[str, Mapping[str, Any]]:
    """The content of each profile that emulated runs paid, by name, with its hash where two go by one; empty where the
    record does not hold it."""
    labels, found = labels_of(runs), dict[str, Mapping[str, Any]]()
    for run in runs:
        if run.mode == "emulated":
            found.setdefault(labels[run.run_id].removeprefix("emulated "), _content(run.tolls or {}))
    return found


def _content(node: Mapping[str, Any]) -> Mapping[str, Any]:
    """The mapping with `tolls` in it: of the record's section, or of what it holds."""
    for candidate in (node, *node.values()):
        if isinstance(candidate, Mapping) and isinstance(candidate.get("tolls"), Mapping):
            return candidate
    return {}


def rows(profile: Mapping[str, Any]) -> list[tuple[str, str, str, str, str]]:
    """Toll, value, the seed post's B300 and Hopper, and where the profile has its value from."""
    tolls = profile.get("tolls")
    entries = tolls.items() if isinstance(tolls, Mapping) else ()
    return [
        (str(name), _shown(entry.get("value")), *_beside(str(name)), str(entry.get("source") or ""))
        for name, entry in entries
        if isinstance(entry, Mapping) and entry.get("value") is not None
    ]


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return "; ".join(f"{_shown(point[1])} at {size(int(point[0]))}" for point in value if _is_point(point))
    return number(float(value)) if isinstance(value, (int, float)) else str(value)


def _is_point(node: Any) -> bool:
    return isinstance(node, list) and len(node) == 2 and all(_is_number(value) for value in node)


def _is_number(node: Any) -> bool:
    return isinstance(node, (int, float)) and math.isfinite(node)


def _beside(toll: str) -> tuple[str, str]:
    if toll not in _OF:
        return "", ""
    name, conditions = _OF[toll]
    found = {
        entry.hardware: entry.text
        for entry in reversed(PUBLISHED)
        if (entry.name, entry.source) == (name, SEED) and conditions.items() <= entry.conditions.items()
    }
    return found.get("B300", ""), found.get("Hopper", "")
