"""The difference of two files as an emulation profile: the tolls that an ordinary GPU's driver calls are slowed by.

The profile's schema is that of `cctrain/emulation/profile.py`, which reads it back. `made_of` holds both machines. What
the files do not hold is null, and so is the interval of what is made of several readings.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from cctrain.emulation.profile import FLAGS, KIND, SCHEMA_VERSION, TABLES, parse_profile
from cctrain.errors import RequestError
from cctrain.tolls.diff import Difference
from cctrain.tolls.record import Reading, TollsRecord

_CONTROL = 0.03
"""A control that moved by more says that the machines differ in more than CC."""

Number = dict[str, Any]


def emulation_profile(name: str, off: TollsRecord, on: TollsRecord, tolls: Sequence[Difference]) -> dict[str, Any]:
    """The profile of what `differences(off, on)` gave, as plain JSON. Raises RequestError where none can be made."""
    machines = {
        mode: {"mode": record.mode, "measured_at": record.measured_at, "identity": record.identity}
        for mode, record in (("off", off), ("on", on))
    }
    profile = {"kind": KIND, "schema_version": SCHEMA_VERSION, "name": name, "made_of": machines}
    profile["tolls"] = dict(_numbers(tolls))
    try:
        parse_profile(profile)
    except ValueError as error:
        raise RequestError(f"the difference makes no profile: {error}") from error
    return profile


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
    host_ratio = _ratio(find("host_python"), at_least=1.0)
    by_driver = find("launch_pipelined", via="driver")[:1]
    yield "launch_us", _less_host_code(_sum([(1, launch)]), [*launch, *by_driver], host_ratio["value"])
    yield "graph_launch_us", toll("graph_launch_pipelined")
    yield "wait_us", _sum([(1, wait), (-1, launch)])
    for name in TABLES:
        _, direction, memory, _ = name.split("_")
        yield name, _table(find("copy", direction=direction, memory=memory), wait, launch)
    for name in FLAGS:
        direction, memory, _ = name.split("_")
        yield name, _blocks(find("copy_issue", direction=direction, memory=memory))
    yield "alloc_host_us", toll("alloc", where="host")
    yield "alloc_device_us", toll("alloc", where="device")
    yield "collective_us", toll("all_reduce", launch="graph")
    yield "host_ratio", host_ratio
    yield "matmul_ratio", _ratio(find("matmul"), at_least=0.0)


def _sum(terms: Sequence[tuple[int, Sequence[Difference]]]) -> Number:
    """The tolls of signed terms, each one difference or none; what is below 0 is noise and cannot be injected."""
    if any(not found or found[0].off.unit != "us" for _, found in terms):
        return _missing()
    value = sum(sign * found[0].toll for sign, found in terms)
    source = " ".join(f"{'+' if sign > 0 else '-'} [{_source(found[0])}]" for sign, found in terms).removeprefix("+ ")
    interval = terms[0][1][0].interval if len(terms) == 1 else None
    if value < 0:
        source += f"; {value:.3g} taken as 0"
    return {"value": max(0.0, value), "interval": interval and [max(0.0, end) for end in interval], "source": source}


def _less_host_code(launch: Number, timed: Sequence[Difference], host_ratio: float | None) -> Number:
    """Without what `host_ratio` charges besides: torch's code around the driver's call runs slower as well. `timed` has
    a launch by torch and one by the driver alone."""
    if launch["value"] is None or host_ratio is None or len(timed) < 2:
        return launch
    share = (host_ratio - 1) * max(0.0, timed[0].off.value - timed[1].off.value)
    interval = launch["interval"] and [max(0.0, end - share) for end in launch["interval"]]
    source = f"{launch['source']}; less {share:.3g} us of slower host code around the call, which host_ratio charges"
    return {"value": max(0.0, launch["value"] - share), "interval": interval, "source": source}


def _table(copies: Sequence[Difference], wait: Sequence[Difference], launch: Sequence[Difference]) -> Number:
    """The toll of a copy by its size; the readings hold the wait for it, whose toll is taken off."""
    of_wait = _sum([(1, wait), (-1, launch)])
    timed = [(copy.off.conditions.get("bytes"), _time_us(copy.off), _time_us(copy.on), copy) for copy in copies]
    known = [(size, on - off, copy) for size, off, on, copy in timed if isinstance(size, int) and off and on]
    if of_wait["value"] is None or not known:
        return _missing()
    known.sort(key=lambda point: point[0])
    points = [[num_bytes, max(0.0, toll - of_wait["value"])] for num_bytes, toll, _ in known]
    sources = [f"{num_bytes} bytes {_change(copy)}" for num_bytes, _, copy in known]
    source = f"copy, waited for: {', '.join(sources)}; less {of_wait['value']:.4g} us of the wait: {of_wait['source']}"
    return {"value": points, "interval": None, "source": source}


def _time_us(reading: Reading) -> float | None:
    """Large transfers are read as a rate in GB/s, 1e9 bytes a second."""
    if reading.unit == "us":
        return reading.value
    num_bytes = reading.conditions.get("bytes")
    if reading.unit != "GB/s" or not isinstance(num_bytes, int) or not reading.value:
        return None
    return num_bytes / reading.value / 1e3


def _blocks(found: Sequence[Difference]) -> Number:
    """Whether copies of every size that was measured block with CC on: last as long as the work before them."""
    works_us = [work_us for toll in found if isinstance(work_us := toll.on.conditions.get("work_us"), int)]
    if not found or len(works_us) < len(found):
        return _missing()
    value = all(toll.on.value > work_us / 2 for toll, work_us in zip(found, works_us, strict=True))
    return {"value": value, "interval": None, "source": "; ".join(map(_source, found))}


def _ratio(found: Sequence[Difference], at_least: float) -> Number:
    ratio = found[0].ratio if found else None
    if ratio is None:
        return _missing()
    source = _source(found[0])
    if ratio < at_least:
        source += f"; {ratio:.3f} taken as {at_least:g}"
    return {"value": max(at_least, ratio), "interval": None, "source": source}


def _missing() -> Number:
    return {"value": None, "interval": None, "source": "not in both files"}


def _source(toll: Difference) -> str:
    conditions = ", ".join(f"{key} {value}" for key, value in toll.off.conditions.items())
    return f"{toll.off.name} ({conditions}): {_change(toll)}"


def _change(toll: Difference) -> str:
    return f"{toll.off.value:.4g} -> {toll.on.value:.4g} {toll.off.unit}"
