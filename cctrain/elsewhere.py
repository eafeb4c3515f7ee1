"""The other machines of a run: its record's `platform` is of the one that its parent ran on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cctrain.processes import host_name, is_here


def other_machines(starts: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """By the `start` lines of all ranks, of each other machine `host`, `num_ranks`, and the `mode` and models of `gpu`
    that its first rank saw; None where it did not look."""
    found: dict[str, dict[str, Any]] = {}
    for start in starts:
        if not is_here(start):
            other = found.setdefault(
                str(start.get("host")), {"host": host_name(start), "num_ranks": 0, "mode": None, "gpu": None}
            )
            other["num_ranks"] += 1
            seen = start.get("seen") or {}
            other |= {name: seen[name] for name in ("mode", "gpu") if name in seen}
    return list(found.values())


def notes(record: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a reader of `record` has to know of them, in sentences."""
    found = []
    if others:
        names = ", ".join(other["host"] for other in others)
        attested = "" if record["mode"] in ("off", "emulated") else ", and their GPUs are not attested"
        found.append(
            f"platform is of the machine that began the run; of {names} it has mode and GPU names at most{attested}"
        )
    for other in others:
        if other["mode"] is None:
            found.append(f"{other['host']} did not say which mode it is in")
        elif (other["mode"], other["gpu"]) != (record["mode"], record["identity"].get("gpu")):
            seen = f"mode {other['mode']}, GPU {', '.join(other['gpu']) or 'none'}"
            found.append(f"{other['host']} is unlike the machine that began the run: {seen}")
    return found
