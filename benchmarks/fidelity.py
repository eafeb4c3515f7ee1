"""Does the emulation pay what its profile says? The verb tolls under a profile: each reading with and without it.

    python -m cctrain tolls --tolls b300 --out b300.json
    python benchmarks/fidelity.py b300.json
    python benchmarks/fidelity.py b300.json --own off.json       beside another run's, without the injection library

Of every reading: this machine's own time, that with the profile's toll for what it does, and how far what was measured
is from their sum; 5 % is promised. Both were measured in the same processes, in turns, as both arms of an emulated run
are, so each process is held against its own times, and the one in the middle is shown; what the injection library
costs where no toll is paid is in both (benchmarks/injector.py, graph_launch.py measure it). Readings that make no call
which the profile charges are listed with a toll of 0. Where a kernel is longer than its launch with the toll, the toll
hides behind it, and the kernel's time is expected.

A profile also stretches the host's code. How much of a reading is host code is not measured: none of it, up to all
that a launch and the wait for it take. `up to` has it all stretched; a reading within the bar of this sum only is
marked `host`, and named apart.

Collectives in a graph wait for the delay on the GPU; the launch of the graph is shared by all that it holds. Launched
one by one, small ones take as long as the host's code for them, all of which is stretched, and the delay hides behind
the launches; large ones take as long as the exchange and the delay, and share the toll of the first launch, which the
GPU waits for. What ends a block is a wait, whose toll its calls share.

The last line of stdout is one JSON object; the exit code is 1 where a charged reading is farther than promised from
both sums.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cctrain.emulation.profile import Profile, copy_toll_us, load_profile
from cctrain.errors import RequestError
from cctrain.tolls.record import Reading, read_tolls
from cctrain.tolls.table import describe

BAR = 0.05
COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter")
HOST_BOUND = 1.2
"""Collectives launched one by one that take at most so many times what the smallest takes are bound by the host."""
_IN_SUMS = ("idle_wait", "launch_call", "launch_wait")
"""Readings whose own times are part of what others than collectives should take."""
_US_PER_NS = 1e-3

Pairs = list[tuple[Reading, Reading]]
"""Of each thing its own reading, without tolls, and that under the profile."""


def by_process(readings: Sequence[Reading]) -> list[Pairs]:
    """The pairs of each process that measured both in turns, so that its luck is in both."""
    return [
        [
            (
                dataclasses.replace(reading, value=reading.plain_process_values[index]),
                dataclasses.replace(reading, value=reading.process_values[index]),
            )
            for reading in readings
            if index < len(reading.plain_process_values)
        ]
        for index in range(max((len(reading.plain_process_values) for reading in readings), default=0))
    ]


def with_others(readings: Iterable[Reading], others: Iterable[Reading]) -> Pairs:
    """The pairs of `others`, measured without tolls, with the readings of the same things."""
    tolled = {reading.key: reading for reading in readings}
    return [(other, tolled[other.key]) for other in others if other.key in tolled]


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


def calls_before_last_wait(reading: Reading) -> int | None:
    """How many calls a block of it makes before the wait that ends the block; None where there is none, or where it is
    lost in what is measured."""
    from cctrain.tolls import collectives, copies, events, graphs, launch  # torch: not for whoever imports this file

    if reading.name in ("copy", *COLLECTIVES):
        family = copies if reading.name == "copy" else collectives
        num: int = family.num_calls(int(reading.conditions["bytes"] or 0))
        return num
    num_calls: dict[str, int] = {
        "launch_pipelined": launch.CALLS,
        "launch_wait": launch.WAITED_CALLS,
        "graph_launch_pipelined": graphs.REPLAYS,
        "graph_launch_wait": graphs.REPLAYS,
        "event_wait": events.CALLS,
        "idle_wait": events.CALLS,
    }
    return num_calls.get(reading.name)


def stretch_us(reading: Reading, own_us: float, profile: Profile, own: Mapping[str, float]) -> float:
    """What the profile's slower host adds if all of the reading is host code, up to a launch and the wait for it, or a
    small collective's own."""
    most_us = own["launch_wait"]
    if reading.name in COLLECTIVES:
        most_us = own[reading.name] if reading.conditions["launch"] == "eager" else 0.0
    return (profile.number("host_ratio") - 1) * min(own_us, most_us)


def off_by(got_us: float, least_us: float, most_us: float) -> float:
    """How far a time is outside of a span, relative to its nearer end; 0 inside."""
    return got_us / least_us - 1 if got_us < least_us else max(0.0, got_us / most_us - 1)


def verdict(got_us: float, least_us: float, most_us: float) -> str:
    """OVER where a time is farther than promised from both sums, host where only from the lesser one, else nothing."""
    if abs(off_by(got_us, least_us, most_us)) > BAR:
        return "OVER"
    return "host" if abs(got_us / least_us - 1) > BAR else ""


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
    if name in COLLECTIVES:
        delayed_us = own_us + profile.number("collective_us")
        if conditions["launch"] == "graph":
            return delayed_us
        return own_us + launch if is_host_bound(reading, own_us, own) else max(delayed_us, own[name] + launch)
    if name in ("copy", "copy_issue"):
        return own_us + _copy_us(reading, profile, launch, wait, own["idle_wait"])
    if name == "bulk_load":
        num_bytes, tensors = int(conditions["bytes"] or 0), int(conditions["tensors"] or 1)
        memory = conditions.get("memory", "pageable")
        return own_us + tensors * copy_toll_us(profile.points(f"copy_h2d_{memory}_us"), num_bytes / tensors)
    return own_us + plain.get(name, 0.0)


def is_host_bound(reading: Reading, own_us: float, own: Mapping[str, float]) -> bool:
    """Whether the launches of a collective take the host longer than the exchange the GPU."""
    return own_us <= HOST_BOUND * own[reading.name]


def once_us(reading: Reading, own_us: float, profile: Profile, own: Mapping[str, float]) -> float:
    """What all calls of a block share: the toll of the wait that ends it and, of collectives, that of the graph which
    holds them, or of the first launch, which the GPU waits for where the host does not bound the others."""
    once = profile.number("wait_us")
    if reading.name in COLLECTIVES:
        if reading.conditions["launch"] == "graph":
            once += profile.number("graph_launch_us")
        elif not is_host_bound(reading, own_us, own):
            once += profile.number("launch_us")
    return once


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


@dataclass(frozen=True, slots=True)
class Row:
    """A reading beside what it should be, microseconds."""

    what: str
    own_us: float
    wanted_us: float
    most_us: float
    got_us: float
    is_charged: bool

    @property
    def off(self) -> float:
        """From the first sum, relative to it."""
        return self.got_us / self.wanted_us - 1

    @property
    def mark(self) -> str:
        """The verdict in a word."""
        return verdict(self.got_us, self.wanted_us, self.most_us) if self.is_charged else "free"


def sums(pairs: Pairs, profile: Profile) -> list[Row]:
    """Each reading of a process beside the sums of the process's own times and tolls."""
    own = dict.fromkeys((*_IN_SUMS, *COLLECTIVES), 0.0)  # the first of each name
    own |= {plain.name: plain.value for plain, _ in reversed(pairs) if plain.name in own}
    rows = []
    for reading, tolled in pairs:
        own_us, got_us = time_us(reading), time_us(tolled)
        if own_us is None or got_us is None:
            continue
        wanted = expected_us(reading, own_us, profile, own)
        is_charged = wanted > own_us
        if is_charged:
            wanted += once_us(reading, own_us, profile, own) / (calls_before_last_wait(reading) or math.inf)
        most = wanted + stretch_us(reading, own_us, profile, own)
        rows.append(Row(f"{reading.name} ({describe(reading.conditions)})", own_us, wanted, most, got_us, is_charged))
    return rows


def middle_rows(rows: Iterable[Row]) -> list[Row]:
    """Of the processes' rows for each reading the one whose deviation is the middle one."""
    by_what: dict[str, list[Row]] = {}
    for row in rows:
        by_what.setdefault(row.what, []).append(row)
    return [sorted(group, key=lambda row: row.off)[len(group) // 2] for group in by_what.values()]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the comparison. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="what `tolls --tolls NAME` wrote")
    parser.add_argument("--own", type=Path, metavar="OFF", help="take the machine's own times from this run of tolls")
    parser.add_argument("--profile", help="the profile's file, where it is none of cctrain's")
    flags = parser.parse_args(arguments)
    try:
        record = read_tolls(flags.file)
        other = read_tolls(flags.own) if flags.own else None
        profile = load_profile(flags.profile or str(record.tolls["name"])) if record.tolls else None
    except RequestError as error:
        parser.error(f"{error} (--profile FILE names one that is none of cctrain's)")
    if other and other.tolls:
        parser.error(f"--own {flags.own} was measured under tolls itself: give one of `tolls` without --tolls")
    processes = [with_others(record.readings, other.readings)] if other else by_process(record.readings)
    if not profile or not processes:
        parser.error(
            f"{flags.file} holds nothing measured with and without a profile: `tolls --tolls NAME` measures so"
        )
    names = {plain.name for pairs in processes for plain, _ in pairs}
    lacking = sorted(set(_IN_SUMS) - names)
    if lacking and not names <= set(COLLECTIVES):
        parser.error(
            f"{flags.own or flags.file} lacks {', '.join(lacking)}, parts of the sums of all but collectives: measure "
            "launch and events, too"
        )
    if profile.sha256 != (record.tolls or {}).get("sha256"):
        parser.error(f"the profile {profile.name} has changed since it was measured")
    rows = middle_rows([row for pairs in processes for row in sums(pairs, profile)])
    print(f"{'':52}{'own':>12}{'expected':>12}{'up to':>12}{'measured':>12}   off")
    for row in rows:
        times = "".join(f"{time:12.2f}" for time in (row.own_us, row.wanted_us, row.most_us, row.got_us))
        print(f"{row.what[:52]:52}{times} {row.off:+6.1%} {row.mark}")
    charged = [row for row in rows if row.is_charged]
    over, by_host = ([row.what for row in charged if row.mark == mark] for mark in ("OVER", "host"))
    worst = max((abs(off_by(row.got_us, row.wanted_us, row.most_us)) for row in charged), default=None)
    in_processes = [sum(row.mark == "OVER" for row in sums(pairs, profile)) for pairs in processes]
    found = {"tolls": profile.name, "num_charged": len(charged), "worst": worst, "over_in_processes": in_processes}
    print(json.dumps({**found, "over": over, "within_by_host": by_host}))
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
