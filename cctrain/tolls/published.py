"""What others have published, typed in as printed, beside the readings whose definition matches.

Not here, because it is defined differently: transfers under 64 MB of the ISPASS'25 artifact (the copy alone, ours with
the wait), and the 34x of a model's load (with its software).
"""

from __future__ import annotations

from dataclasses import dataclass

from cctrain.tolls.record import Facts, Reading

SEED = '"How does NVIDIA Confidential Computing impact inference and training performance?", Tinfoil, 2026, section 3'
ISPASS = "ISPASS'25 artifact: one H100, Intel TDX, devtools mode"
ARXIV = "arXiv 2606.23969"
_MIB, _GIB = 1 << 20, 1 << 30


@dataclass(frozen=True, slots=True)
class Published:
    """A value of readings named `name` whose conditions include `conditions`."""

    name: str
    conditions: Facts
    hardware: str
    text: str
    """CC off -> CC on; or x: on over off; or +: what CC adds."""
    source: str


def _seed(name: str, conditions: Facts, b300: str, hopper: str | None) -> list[Published]:
    columns = (("B300", b300), ("Hopper", hopper))
    return [Published(name, conditions, hardware, text, SEED) for hardware, text in columns if text]


def _bulk(memory: str) -> Facts:
    return {"direction": "h2d", "memory": memory, "bytes": 256 * _MIB}


def _h100(direction: str, memory: str, num_bytes: int, text: str) -> Published:
    return Published("copy", {"direction": direction, "memory": memory, "bytes": num_bytes}, "H100", text, ISPASS)


PUBLISHED = (
    *_seed("launch_pipelined", {"via": "torch"}, "7.4 -> 26", "2.0x"),
    *_seed("launch_wait", {"via": "torch"}, "14 -> 55", "2.6x"),
    *_seed("copy", _bulk("pinned"), "55.7 -> 4-11", "0.18x"),
    *_seed("copy", _bulk("pageable"), "19.2 -> 15.0", None),
    *_seed("copy_issue", {"direction": "d2h", "memory": "pinned", "bytes": 4}, "queued -> blocks", None),
    *(
        entry
        for num_bytes in (1 << 10, 64 << 10, _MIB)
        for entry in _seed("all_reduce", {"bytes": num_bytes, "launch": "eager"}, "+10-15", "+9-13")
    ),
    *_seed("all_reduce", {"bytes": _GIB, "launch": "eager"}, "0.89x", "0.94x"),
    Published("matmul", {}, "B300", "0.998x", ARXIV),
    Published("launch_call", {"args": 16}, "H100", "4.9 -> 9.9", ISPASS),
    _h100("h2d", "pinned", 64 * _MIB, "43.0 -> 3.03"),
    _h100("h2d", "pinned", _GIB, "43.1 -> 2.54"),
    _h100("h2d", "pageable", _GIB, "9.8 -> 2.57"),
    _h100("d2h", "pinned", _GIB, "39.0 -> 2.33"),
    _h100("d2d", "device", _GIB, "2864 -> 2863"),
    Published("alloc", {"where": "host"}, "H100", "5.7x", ISPASS),
    Published("alloc", {"where": "device"}, "H100", "5.3x", ISPASS),
)
HARDWARE = tuple(dict.fromkeys(entry.hardware for entry in PUBLISHED))


def published_beside(reading: Reading, hardware: str) -> str:
    """The published value of the same thing on `hardware`, or an empty string."""
    for entry in PUBLISHED:
        if (entry.name, entry.hardware) == (reading.name, hardware) and (
            entry.conditions.items() <= reading.conditions.items()
        ):
            return entry.text
    return ""
