"""Two files of tolls, CC off and on, to the tolls: what each operation costs more."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

from cctrain.emulation.profile import ASSUMED
from cctrain.errors import RequestError
from cctrain.tolls.record import Reading, TollsRecord

IDENTITY = ("gpu", "num_gpus", "driver", "cpu", "torch", "cctrain")
"""What must match: keys of TollsRecord.identity."""
MODE = "mode"


@dataclass(frozen=True, slots=True)
class Difference:
    """The same reading with CC off and on."""

    off: Reading
    on: Reading

    @property
    def toll(self) -> float:
        """On minus off, in the readings' unit: what CC adds to a time or takes from a rate."""
        return self.on.value - self.off.value

    @property
    def ratio(self) -> float | None:
        """On over off."""
        return self.on.value / self.off.value if self.off.value else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the toll from those of its two values (MOVER: their squared distances add up), None without
        them. It knows how processes of the two runs differ, not how runs do."""
        if self.off.interval is None or self.on.interval is None:
            return None
        (off_low, off_high), (on_low, on_high) = self.off.interval, self.on.interval
        below = math.hypot(self.on.value - on_low, off_high - self.off.value)
        above = math.hypot(on_high - self.on.value, self.off.value - off_low)
        return (self.toll - below, self.toll + above)

    @property
    def is_noise(self) -> bool:
        """Whether the interval holds 0."""
        return self.interval is not None and self.interval[0] <= 0 <= self.interval[1]


def differences(off: TollsRecord, on: TollsRecord) -> list[Difference]:
    """Of all readings that both hold, in the order of `off`. Raises RequestError where there is none."""
    by_key = {(reading.key, reading.unit): reading for reading in on.readings}
    matching = ((reading, by_key.get((reading.key, reading.unit))) for reading in off.readings)
    both = [Difference(reading, other) for reading, other in matching if other]
    if not both:
        raise RequestError("the two files have no reading in common")
    return both


def check_comparable(off: TollsRecord, on: TollsRecord, allowed: Collection[str]) -> None:
    """Raise RequestError naming all that differs between the machines beside CC, but for the keys `allowed`; and for
    emulated readings whatever is allowed: a profile made of them would pass for a measured one."""
    if "emulated" in (off.mode, on.mode):
        raise RequestError(
            f"a difference is of two measurements, with CC off and on; these are {off.mode} and {on.mode}: give files "
            "that `tolls` wrote without --tolls (what emulation adds, `tolls --tolls NAME` shows by itself)"
        )
    unlike = [
        f"{key} ({off.identity.get(key)} and {on.identity.get(key)})"
        for key in IDENTITY
        if off.identity.get(key) != on.identity.get(key) and key not in allowed
    ]
    if (off.mode, on.mode) != ("off", "on") and MODE not in allowed:
        unlike.insert(0, f"{MODE} (off and on are needed, in this order; these are {off.mode} and {on.mode})")
    if unlike:
        names = " ".join(entry.partition(" ")[0] for entry in unlike)
        raise RequestError(f"the two files differ in {', '.join(unlike)}; --allow {names} takes them all the same")


_HIDDEN, _PAID = 0.1, 0.9
"""Shares of a launch's toll that show behind work: below the first work hides it, from the second it hides nothing."""


def who_pays(tolls: Collection[Difference]) -> str | None:
    """Whether work hides the toll of a launch: then the host pays it, else the GPU, and what emulation assumes first
    does not hold. None where nothing was measured, or a launch has no toll."""
    launch = next((one.toll for one in tolls if _is_launch(one)), 0.0)
    busy = sorted(
        (kernel_us, one.toll)
        for one in tolls
        if one.off.name == "launch_busy" and isinstance(kernel_us := one.off.conditions.get("kernel_us"), int)
    )
    if not busy or launch <= 0:
        return None
    behind = ", ".join(f"{toll:.1f} us behind {kernel_us} us" for kernel_us, toll in busy)
    share = busy[-1][1] / launch  # of the longest work, which hides most
    if share < _HIDDEN:
        found = f"the host pays it and work hides it, as emulation assumes ({ASSUMED[0]})"
    elif share >= _PAID:
        found = f"the GPU's front end pays it, and emulation, which assumes that {ASSUMED[0]}, does not show this"
    else:
        found = (
            f"host and GPU share it, or it was not measured well: it neither bears out nor refutes that {ASSUMED[0]}"
        )
    return f"a launch's toll of {launch:.1f} us shows as {behind} of work: {found}"


def _is_launch(one: Difference) -> bool:
    return one.off.name == "launch_pipelined" and one.off.conditions.get("via") == "torch"
