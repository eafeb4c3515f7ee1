"""The tolls as an emulation profile: the numbers that an ordinary GPU's driver calls are slowed down by.

A profile is JSON: `name`, `made_of` (both files' machines) and `tolls`, name -> `value`, `interval` and `source`. What
the files do not hold is null, and so is the interval of what is made of several readings. The tolls, in microseconds:
- launch_us, graph_launch_us: what CC adds to a launch. wait_us: to a wait, beside its launch.
- copy_DIRECTION_MEMORY_us: to the smallest copy, beside its wait; ..._gb_per_s: the rate of the largest, off and on.
- d2h_MEMORY_blocks: whether an asynchronous read waits, with CC on, for the stream to drain.
- alloc_host_us, alloc_device_us: to the smallest allocation. collective_us: to the smallest all-reduce, in a graph.
- host_ratio, matmul_ratio: on over off, of the time of host code, and of the control, which must be near 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from cctrain.tolls.diff import Difference
from cctrain.tolls.record import TollsRecord

SCHEMA_VERSION = 1
_CONTROL = 0.03
"""A control that moved by more says that the machines differ in more than CC."""

Number = dict[str, Any]


def emulation_profile(name: str, off: TollsRecord, on: TollsRecord, tolls: Sequence[Difference]) -> dict[str, Any]:
    """The profile of what `differences(off, on)` gave."""
    machines = {
        mode: {"mode": record.mode, "measured_at": record.measured_at, "identity": record.identity}
        for mode, record in (("off", off), ("on", on))
    }
    profile = {"kind": "cctrain emulation profile", "schema_version": SCHEMA_VERSION, "name": name}
    return {**profile, "made_of": machines, "tolls": dict(_numbers(tolls))}


def control_warning(profile: dict[str, Any]) -> str | None:
    """What to doubt where the control moved; None where it did not, or was not measured."""
    ratio = profile["tolls"]["matmul_ratio"]["value"]
    if ratio is None or abs(ratio - 1) <= _CONTROL:
        return None
    return f"the control moved: matmul runs at {ratio:.3f} of its rate, so the machines differ in more than CC"


def _numbers(tolls: Sequence[Difference]) -> Iterator[tuple[str, Number]]:
    def find(name: str, **conditions: str) -> list[Difference]:
        return [toll for toll in tolls if toll.off.name == name and conditions.items() <= toll.off.conditions.items()]

    def toll(name: str, **conditions: str) -> Number:
        return _sum([(1, find(name, **conditions)[:1])])

    launch, wait = find("launch_pipelined", via="torch")[:1], find("launch_wait", via="torch")[:1]
    yield "launch_us", _sum([(1, launch)])
    yield "graph_launch_us", toll("graph_launch_pipelined")
    yield "wait_us", _sum([(1, wait), (-1, launch)])
    for direction in ("h2d", "d2h"):
        for memory in ("pinned", "pageable"):
            copies = find("copy", direction=direction, memory=memory)
            yield f"copy_{direction}_{memory}_us", _sum([(1, copies[:1]), (-1, wait), (1, launch)])
            for mode in ("off", "on"):
                yield f"copy_{direction}_{memory}_{mode}_gb_per_s", _rate(copies[-1:], mode)
    for memory in ("pinned", "pageable"):
        yield f"d2h_{memory}_blocks", _blocks(find("copy_issue", direction="d2h", memory=memory)[:1])
    yield "alloc_host_us", toll("alloc", where="host")
    yield "alloc_device_us", toll("alloc", where="device")
    yield "collective_us", toll("all_reduce", launch="graph")
    yield "host_ratio", _ratio(find("host_python"))
    yield "matmul_ratio", _ratio(find("matmul"))


def _sum(terms: Sequence[tuple[int, Sequence[Difference]]]) -> Number:
    """The tolls of signed terms, each one difference or none; what is below 0 is noise and cannot be injected."""
    if any(not found or found[0].off.unit != "us" for _, found in terms):
        return _missing()
    value = sum(sign * found[0].toll for sign, found in terms)
    source = " ".join(f"{'+' if sign > 0 else '-'} [{_source(found[0])}]" for sign, found in terms).removeprefix("+ ")
    interval = terms[0][1][0].interval if len(terms) == 1 else None
    if value < 0:
        source += f"; {value:.3g} taken as 0"
    return {"value": max(0.0, value), "interval": interval, "source": source}


def _rate(found: Sequence[Difference], mode: str) -> Number:
    if not found or found[0].off.unit != "GB/s":
        return _missing()
    reading = found[0].on if mode == "on" else found[0].off
    return {"value": reading.value, "interval": reading.interval, "source": _source(found[0])}


def _blocks(found: Sequence[Difference]) -> Number:
    work_us = found[0].off.conditions.get("work_us") if found else None
    if not isinstance(work_us, int):
        return _missing()
    return {"value": found[0].on.value > work_us / 2, "interval": None, "source": _source(found[0])}


def _ratio(found: Sequence[Difference]) -> Number:
    if not found:
        return _missing()
    return {"value": found[0].ratio, "interval": None, "source": _source(found[0])}


def _missing() -> Number:
    return {"value": None, "interval": None, "source": "not in both files"}


def _source(toll: Difference) -> str:
    conditions = ", ".join(f"{key} {value}" for key, value in toll.off.conditions.items())
    return f"{toll.off.name} ({conditions}): {toll.off.value:.4g} -> {toll.on.value:.4g} {toll.off.unit}"
