"""What CC would cost a run that was made without it: a what-if, from its crossings and a toll profile.

The host pays tolls at every crossing, and its own code runs slower. In a step that is, with copies at their mean size,

    D = sum of count x toll + (host_ratio - 1) x (step time - time in driver calls)

The host runs ahead of the GPU: for `blocked_s` of the step it only waits, and that much of D nobody sees. Collectives'
tolls, G, delay the GPU itself, while the host's are paid and not after them. So a step takes longer by

    max(0, D - blocked_s, G)     the estimate: of host and GPU, the one that is held up longer counts
    max(0, D - blocked_s - W)    at least: every toll at its low end, G hidden beside computation
    D + G + C                    at most: every toll at its high end, and nothing hidden

W is what calls other than waits and copies take in the driver, beyond 5 us a launch. A GPU whose queue is full makes
launches wait, and then little of D is seen; a slow host looks the same.

C is for pinned copies, which under CC wait until their stream is empty and so end the host's lead over the GPU. With n
of them the host waits at n + waits points of a step. Where these are spread evenly, each copy can show at most the host
code up to the next one: C = n / (n + waits) x (step time - blocked_s).

Extra time travels between machines, ratios do not (a faster host is less of the bottleneck): it is added to the step
time, or to that of a CC-off run elsewhere, before anything is divided. How the estimate and the range fared beside
emulated runs: `python benchmarks/predicted.py docs/evidence`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cctrain.emulation.profile import RATIOS, Profile, copy_toll_us
from cctrain.errors import RequestError
from cctrain.records import SCHEMA_VERSION
from cctrain.untrusted import check_run, expect, json_of, number, shown

_MOST_BYTES = 64 << 20
_COPIES = ("h2d_pinned", "h2d_pageable", "d2h_pinned", "d2h_pageable")
_COUNTS = {
    "launches": "launch_us",
    "graph_launches": "graph_launch_us",
    "waits": "wait_us",
    "allocs_host": "alloc_host_us",
    "allocs_device": "alloc_device_us",
    "collectives": "collective_us",
}
"""The counts of a record's crossings, and the toll that each pays."""
_LAUNCH_S = (5e-6, 10e-6)
"""In the driver, of a launch that waits for nothing: the least and the most seen on hosts (docs/evidence/README.md).
What takes longer waits for room on a GPU that has enough to do, and tolls are paid meanwhile."""


@dataclass(frozen=True, slots=True)
class Range:
    """An estimate between its lowest and highest value."""

    low: float
    value: float
    high: float

    def times(self, factor: float) -> Range:
        """All three by `factor`."""
        return Range(self.low * factor, self.value * factor, self.high * factor)


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """What a prediction starts from: the plain steps of a run, on the rank that launched most."""

    counted_by: str
    step_time_s: float
    """Mean."""
    is_steady: bool
    counts: Mapping[str, float]
    """A step, by the toll that is paid."""
    copy_bytes: Mapping[str, float]
    """Mean bytes of a copy, by its toll."""
    in_driver_s: float
    blocked_s: float
    emulated: Mapping[str, Any] | None
    """Of an emulated run: its profile's `sha256`, and its `keep_ratio` with `ci95`."""


@dataclass(frozen=True, slots=True)
class Part:
    """What one toll adds to a step."""

    toll: str
    a_step: float
    """How often it is paid; of host_ratio, seconds of host code."""
    each: Range | None
    """Microseconds each; of host_ratio, the ratio. None where the profile does not know."""
    extra_s: Range | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What CC adds to a step. Seconds."""

    parts: tuple[Part, ...]
    base_step_time_s: float
    hidden_s: float
    """Of the estimate, what is paid without making the step longer."""
    extra_s: Range
    measured: Range | None
    """The loss that was measured under the same tolls, or with CC on, with its 95 % interval."""

    @property
    def step_time_s(self) -> Range:
        """With CC."""
        base, extra = self.base_step_time_s, self.extra_s
        return Range(base + extra.low, base + extra.value, base + extra.high)

    @property
    def loss(self) -> Range:
        """Throughput lost, 0 to 1."""
        base, extra = self.base_step_time_s, self.extra_s
        return Range(*(each / (base + each) for each in (extra.low, extra.value, extra.high)))

    @property
    def off_by(self) -> float | None:
        """Predicted minus measured loss."""
        return self.loss.value - self.measured.value if self.measured else None


def predict(base: Base, profile: Profile, base_step_time_s: float | None = None) -> Prediction:
    """What `profile` adds to a step of `base`, or to one of `base_step_time_s` that was measured elsewhere."""
    counts = dict(base.counts)
    if base.counted_by != "operators":  # launches are all that the CPU's stand-in pays
        counts["host_ratio"] = max(0.0, base.step_time_s - base.in_driver_s)
    parts = tuple(_part(base, profile, toll, count) for toll, count in counts.items() if count)
    known = [(part.toll, part.extra_s) for part in parts if part.extra_s]
    host = _total(extra for toll, extra in known if toll != "collective_us")
    gpu = _total(extra for toll, extra in known if toll == "collective_us")
    in_launches_s = base.in_driver_s - base.blocked_s
    most_waited_s, waited_s = (max(0.0, in_launches_s - each * counts.get("launch_us", 0.0)) for each in _LAUNCH_S)
    extra_s = Range(
        max(0.0, host.low - base.blocked_s - most_waited_s),
        max(0.0, host.value - base.blocked_s - waited_s, gpu.value),
        host.high + gpu.high + _most_drained_s(base, profile),
    )
    return Prediction(
        parts=parts,
        base_step_time_s=base.step_time_s if base_step_time_s is None else base_step_time_s,
        hidden_s=host.value + gpu.value - extra_s.value,
        extra_s=extra_s,
        measured=_measured(base, profile) if base_step_time_s is None else None,
    )


def num_draining(base: Base, profile: Profile) -> float:
    """Copies a step that wait until their stream is empty under CC and not without it."""
    kinds = ("h2d_pinned", "d2h_pinned")  # pageable ones to the host do so anyway
    return sum(base.counts.get(f"copy_{kind}_us", 0.0) for kind in kinds if profile.blocks(f"{kind}_blocks"))


def _most_drained_s(base: Base, profile: Profile) -> float:
    num = num_draining(base, profile)
    share = num / (num + base.counts["wait_us"]) if num else 0.0
    return share * max(0.0, base.step_time_s - base.blocked_s)


def _part(base: Base, profile: Profile, toll: str, count: float) -> Part:
    value = profile.tolls[toll].value
    if value is None:
        return Part(toll, count, None, None)
    if toll in base.copy_bytes:
        us = copy_toll_us(profile.points(toll), base.copy_bytes[toll])
        each = Range(us, us, us)
    else:
        paid = profile.number(toll)
        low, high = profile.tolls[toll].interval or (paid, paid)
        each = Range(low, paid, high)
    if toll in RATIOS:
        return Part(toll, count, each, Range(each.low - 1, each.value - 1, each.high - 1).times(count))
    return Part(toll, count, each, each.times(count * 1e-6))


def _total(ranges: Iterable[Range]) -> Range:
    listed = list(ranges)
    return Range(*(math.fsum(getattr(each, end) for each in listed) for end in ("low", "value", "high")))


def _measured(base: Base, profile: Profile) -> Range | None:
    if not base.emulated or base.emulated["sha256"] != profile.sha256:
        return None
    return lost(base.emulated["keep_ratio"], base.emulated["ci95"])


def lost(keep_ratio: float, ci95: tuple[float, float] | None) -> Range:
    """The loss of a keep ratio and its interval."""
    low, high = ci95 or (keep_ratio, keep_ratio)
    return Range(1 - high, 1 - keep_ratio, 1 - low)


def read_base(path: Path) -> Base:
    """The plain steps of the run in the file, or run directory, `path`. Raises RequestError for what holds none."""
    file = path / "run.json" if path.is_dir() else path
    if path.is_dir() and not file.exists():
        raise RequestError(f"{shown(path)} holds no run.json: give one run directory of it, as {shown(path / 'RUN')}")
    try:
        node = json_of(file, _MOST_BYTES)
    except OSError as error:
        raise RequestError(f"{shown(file)} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise RequestError(f"{shown(file)} is no run.json: {error}") from error
    try:
        return _parse(node)
    except ValueError as error:
        raise RequestError(f"{shown(file)} cannot be predicted from: {error}") from error


def _parse(node: Any) -> Base:
    expect(node, dict, "the file")
    check_run(node, SCHEMA_VERSION)
    if node.get("mode") == "on":
        raise ValueError("its steps have paid CC's tolls already; give a run with CC off")
    crossings = node.get("crossings")
    if crossings is None:
        raise ValueError("it holds no crossings; a run with measure.crossings=true, or with cc=emulated, counts them")
    expect(crossings, dict, "crossings")
    name = "summary_off" if node.get("mode") == "emulated" else "summary"
    summary = expect(node.get(name), dict, name)
    step_time_s = number(expect(summary.get("step_time_s"), dict, f"{name}.step_time_s").get("mean"), f"{name} mean")
    if not step_time_s:
        raise ValueError(f"the mean step time of its {name} is 0")
    by_operators = crossings.get("counted_by") == "operators"
    counts = {"launch_us": number(crossings.get("operators"), "operators")} if by_operators else _counts(crossings)
    copies = {} if by_operators else _copies(crossings)
    times = {key: 0.0 if by_operators else number(crossings.get(key), key) for key in ("in_driver_s", "blocked_s")}
    return Base(
        counted_by="operators" if by_operators else "cupti",
        step_time_s=step_time_s,
        is_steady=expect(summary.get("steady_state"), dict, f"{name}.steady_state").get("is_steady") is True,
        counts={**counts, **{toll: count for toll, (count, _) in copies.items()}},
        copy_bytes={
            toll: number(num_bytes / count, f"mean bytes of {toll}")
            for toll, (count, num_bytes) in copies.items()
            if count
        },
        **times,
        emulated=_emulated(node),
    )


def _counts(crossings: Mapping[str, Any]) -> dict[str, float]:
    return {toll: number(crossings.get(name), name) for name, toll in _COUNTS.items()}


def _copies(crossings: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    copies = expect(crossings.get("copies"), dict, "copies")
    found = {}
    for kind in _COPIES:
        copy = expect(copies.get(kind), dict, f"copies.{kind}")
        numbers = tuple(number(copy.get(key), f"copies.{kind}.{key}") for key in ("count", "bytes"))
        found[f"copy_{kind}_us"] = (numbers[0], numbers[1])
    return found


def _emulated(node: Mapping[str, Any]) -> dict[str, Any] | None:
    tolls, keep = node.get("tolls"), node.get("keep_ratio")
    if not isinstance(tolls, dict) or not isinstance(keep, dict):
        return None
    ci95 = keep.get("ci95")
    if ci95 is not None:
        if not isinstance(ci95, list) or len(ci95) != 2:
            raise ValueError(f"keep_ratio.ci95 is {shown(ci95)}, not two numbers")
        ci95 = tuple(number(end, "keep_ratio.ci95") for end in ci95)
    return {"sha256": tolls.get("sha256"), "keep_ratio": number(keep.get("value"), "keep_ratio"), "ci95": ci95}
