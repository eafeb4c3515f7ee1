"""Does the emulation pay what its profile says? The verb tolls without and with a profile, on one machine.

    python -m cctrain tolls --out off.json
    python -m cctrain tolls --tolls b300 --out b300.json
    python benchmarks/fidelity.py off.json b300.json

Of every reading: this machine's own time, the profile's toll for what it does, and how far what was measured is from
their sum; 5 % is promised. Readings that make no call which the profile charges are listed with a toll of 0. Where a
kernel is longer than its launch with the toll, the toll hides behind it, and the kernel's time is expected. The last
line of stdout is one JSON object; the exit code is 1 where a charged reading is farther off than promised.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path

from cctrain.emulation.profile import Profile, copy_toll_us, load_profile
from cctrain.tolls.record import Reading, read_tolls
from cctrain.tolls.table import describe

BAR = 0.05
_US_PER_NS, _US_PER_S = 1e-3, 1e6


def time_us(reading: Reading) -> float | None:
    """A reading as microseconds an operation; None for rates of something else than bytes."""
    if reading.unit == "us":
        return reading.value
    if reading.unit == "ns":
        return reading.value * _US_PER_NS
    num_bytes = reading.conditions.get("bytes")
    if reading.unit == "GB/s" and isinstance(num_bytes, int):
        both_ways = 2 if reading.conditions.get("direction") == "d2d" else 1
        return both_ways * num_bytes / reading.value / 1e3
    return None


def expected_us(reading: Reading, own_us: float, profile: Profile, own: Mapping[str, float]) -> float:
    """What the reading should be under `profile`, from what it is without; `own` are other readings' times."""
    launch, graph, wait = (profile.number(f"{name}_us") for name in ("launch", "graph_launch", "wait"))
    conditions, name = reading.conditions, reading.name
    plain = {
        "launch_pipelined": launch,
        "launch_call": launch,
        "launch_wait": launch + wait,
        "graph_launch_pipelined": graph,
        "graph_launch_call": graph,
        "graph_launch_wait": graph + wait,
        "event_wait": wait,
        "idle_wait": wait,
        "alloc": profile.number(f"alloc_{conditions.get('where')}_us") if name == "alloc" else 0.0,
    }
    if name == "launch_busy":
        return max(own_us, own["launch_call"] + launch)
    if name in ("copy", "copy_issue"):
        return own_us + _copy_us(reading, profile, launch, wait, own["idle_wait"])
    if name == "bulk_load":
        num_bytes, tensors = int(conditions["bytes"] or 0), int(conditions["tensors"] or 1)
        memory = conditions.get("memory", "pageable")
        return own_us + tensors * copy_toll_us(profile.points(f"copy_h2d_{memory}_us"), num_bytes / tensors)
    return own_us + plain.get(name, 0.0)


def _copy_us(reading: Reading, profile: Profile, launch: float, wait: float, idle_us: float) -> float:
    conditions = reading.conditions
    if conditions["direction"] == "d2d":
        return launch + wait
    kind = f"{conditions['direction']}_{conditions['memory']}"
    toll = copy_toll_us(profile.points(f"copy_{kind}_us"), int(conditions["bytes"] or 0))
    is_drained = kind in ("h2d_pinned", "d2h_pinned") and profile.blocks(f"{kind}_blocks")
    if reading.name == "copy":
        # A copy that has blocked leaves nothing to wait for: the program's own call no longer overlaps with it.
        return toll + wait + (idle_us if is_drained else 0.0)
    return toll + (float(conditions["work_us"] or 0) if is_drained else 0.0)


def main() -> int:
    """Print the comparison. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs=2, type=Path, metavar="FILE", help="without, and with the profile")
    plain, tolled = (read_tolls(path) for path in parser.parse_args().files)
    if plain.tolls or not tolled.tolls:
        parser.error("the first file must be without a profile, the second with one")
    profile = load_profile(str(tolled.tolls["name"]))
    if profile.sha256 != tolled.tolls["sha256"]:
        parser.error(f"the profile {profile.name} has changed since it was measured")
    measured = {reading.key: reading for reading in tolled.readings}
    own = {"idle_wait": 0.0, "launch_call": 0.0}
    own |= {reading.name: reading.value for reading in reversed(plain.readings) if reading.name in own}
    rows = []
    print(f"{'':58}{'own':>12}{'expected':>12}{'measured':>12}   off")
    for reading in plain.readings:
        own_us, other = time_us(reading), measured.get(reading.key)
        got_us = other and time_us(other)
        if own_us is None or not got_us:
            continue
        wanted = expected_us(reading, own_us, profile, own)
        off = got_us / wanted - 1
        is_charged = wanted > own_us
        rows.append((reading, is_charged, off))
        mark = "free" if not is_charged else "OVER" if abs(off) > BAR else ""
        what = f"{reading.name} ({describe(reading.conditions)})"
        print(f"{what[:58]:58}{own_us:12.2f}{wanted:12.2f}{got_us:12.2f} {off:+6.1%} {mark}")
    over = [
        f"{reading.name} ({describe(reading.conditions)})"
        for reading, charged, off in rows
        if charged and abs(off) > BAR
    ]
    worst = max((abs(off) for _, charged, off in rows if charged), default=None)
    print(json.dumps({"tolls": profile.name, "num_charged": sum(row[1] for row in rows), "worst": worst, "over": over}))
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
