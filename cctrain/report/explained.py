"""The section `explain` of records: what each class of tolls adds to a step, over the runs that say."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cctrain.load import Run


@dataclass(frozen=True, slots=True)
class Class:
    """One class of tolls. Seconds a step."""

    name: str
    cost_s: float
    alone_s: float | None
    """Paid alone."""
    left_out_s: float | None
    """Saved where it alone is not paid."""
    ci95: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Explained:
    """Where the loss of an emulated run comes from. Seconds a step."""

    run_id: str
    classes: tuple[Class, ...]
    total_s: float
    unexplained_s: float | None
    unexplained_ci95: tuple[float, float] | None
    host_bound_share: float | None
    is_cpu: bool


def explained(runs: Iterable[Run]) -> Explained | None:
    """Of the last of the runs that says; None where none does, or what it says is of no use."""
    for run in reversed(list(runs)):
        found = _parse(run)
        if found:
            return found
    return None


def _parse(run: Run) -> Explained | None:
    node = run.explain or {}
    entries = node.get("classes")
    classes = [_class(entry) for entry in entries] if isinstance(entries, list) else []
    known = tuple(one for one in classes if one)
    total = _number(node.get("total_s"))
    if not known or total is None:
        return None
    unexplained, share = _number(node.get("unexplained_s")), _number(node.get("host_bound_share"))
    is_cpu = run.identity.get("gpu") == ["cpu"]
    return Explained(run.run_id, known, total, unexplained, _interval(node.get("unexplained_ci95")), share, is_cpu)


def what_shows(share: float, *, is_cpu: bool) -> str:
    """How much of what was injected shows in the step, and where the rest is. A CPU hides none; there it is noise."""
    part = round(share, 2)
    if part > 1:
        # docs/evidence/emulated/after_a_wait.txt
        why = "caches cool during a toll and others wait for the thread, or it is noise"
        return f"the step grew by {part:.0%} of what was injected: {why}"
    rest = "; the rest ran while the GPU was busy" if 0 <= part < 1 and not is_cpu else ""
    return f"{part:.0%} of what was injected shows in the step{rest}"


def _class(node: Any) -> Class | None:
    if not isinstance(node, Mapping):
        return None
    cost = _number(node.get("cost_s"))
    if cost is None or not isinstance(node.get("name"), str):
        return None
    ci95 = _interval(node.get("ci95"))
    return Class(node["name"], cost, _number(node.get("alone_s")), _number(node.get("left_out_s")), ci95)


def _interval(node: Any) -> tuple[float, float] | None:
    low, high = [_number(end) for end in node] if isinstance(node, list) and len(node) == 2 else (None, None)
    return None if low is None or high is None else (low, high)


def _number(node: Any) -> float | None:
    is_number = isinstance(node, (int, float)) and not isinstance(node, bool) and math.isfinite(node)
    return float(node) if is_number else None
