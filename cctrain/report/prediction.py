"""A prediction as a table for the terminal."""

from __future__ import annotations

from collections.abc import Callable

from rich.table import Table

from cctrain.console import console_of
from cctrain.emulation.profile import ASSUMED, NOT_EMULATED, Profile
from cctrain.predict import Base, Part, Prediction, Range, num_draining

_WHAT = {
    "launch_us": "launches",
    "graph_launch_us": "graph launches",
    "wait_us": "waits",
    "alloc_host_us": "allocations, pinned host",
    "alloc_device_us": "allocations, device",
    "collective_us": "collectives, on the GPU",
    "host_ratio": "host code",
}


def print_prediction(base: Base, profile: Profile, prediction: Prediction, measured_by: str) -> None:
    """Print to stdout what `profile` would add to a step of `base`, and what was lost by those of `measured_by`."""
    console = console_of()
    table = Table("crossing", "a step", "toll", "adds to a step", title=f"predicted  ·  tolls of {profile.name}")
    for column in table.columns[1:]:
        column.justify = "right"
    for part in prediction.parts:
        table.add_row(*_row(base, part))
    table.add_section()
    if prediction.hidden_s > 0:
        table.add_row("hidden: the host waits for the GPU anyway", "", "", f"-{_time(prediction.hidden_s)}")
    table.add_row("step without CC, mean", "", "", _time(prediction.base_step_time_s))
    table.add_row("step with CC", "", "", _ranged(prediction.step_time_s, _time))
    table.add_row("loss of throughput", "", "", _ranged(prediction.loss, "{:.1%}".format))
    measured = prediction.measured
    if measured:
        table.add_row(f"measured by {measured_by}", "", "", f"{measured.value:.1%}{_interval(measured)}")
        table.add_row("prediction is off by", "", "", f"{100 * (prediction.off_by or 0):+.1f} points")
    console.print(table)
    for line in lines(base, profile, prediction):
        console.print(line, style="dim", soft_wrap=True)


def lines(base: Base, profile: Profile, prediction: Prediction) -> list[str]:
    """What the figure rests on, and what is not in it."""
    unknown = [_WHAT.get(part.toll) or _copy(part.toll) for part in prediction.parts if part.each is None]
    draining = num_draining(base, profile)
    drains = f"what {draining:,.1f} pinned copies a step cost by draining their stream; the more, the likelier"
    said = [
        ("not known to the profile, nothing added", unknown),
        ("assumed", ASSUMED),
        ("not emulated", NOT_EMULATED),
        ("in the upper end only", [drains] if draining else ()),
    ]
    found = [f"{what}: {'; '.join(texts)}" for what, texts in said if texts]
    found += [f"profile {profile.name}: {note}" for note in profile.notes]
    if not base.is_steady:
        found.append("note: the steps this starts from were not steady")
    if base.counted_by == "operators":
        found.append("note: counted by operators on a CPU, a stand-in that says nothing of any GPU")
    return found


def _row(base: Base, part: Part) -> tuple[str, str, str, str]:
    if part.toll == "host_ratio":
        return "host code", _time(part.a_step), f"x {part.each.value:.2f}" if part.each else "not known", _added(part)
    if part.toll in base.copy_bytes:
        what = f"{_copy(part.toll)}, {base.copy_bytes[part.toll]:,.0f} bytes"
    else:
        what = _WHAT[part.toll]
    return what, f"{part.a_step:,.1f}", f"{part.each.value:,.1f} us" if part.each else "not known", _added(part)


def _copy(toll: str) -> str:
    _, direction, memory, _ = toll.split("_")
    return f"copies {direction}, {memory}"


def _added(part: Part) -> str:
    return _ranged(part.extra_s, _time) if part.extra_s else "not known"


def _ranged(estimate: Range, show: Callable[[float], str]) -> str:
    """Its ends too, where they read otherwise than the value."""
    low, value, high = show(estimate.low), show(estimate.value), show(estimate.high)
    return value if low == value == high else f"{value} ({low} to {high})"


def _interval(measured: Range) -> str:
    return f" ({measured.low:.1%} to {measured.high:.1%})" if measured.low < measured.high else ", no interval"


def _time(seconds: float) -> str:
    return (
        f"{seconds:.2f} s"
        if seconds >= 10
        else f"{seconds * 1e3:,.1f} ms"
        if seconds >= 1e-3
        else f"{seconds * 1e6:.0f} us"
    )
