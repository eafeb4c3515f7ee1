"""Do two runs of the verb tolls on one machine agree?

    python -m cctrain tolls --out a.json
    python -m cctrain tolls --out b.json
    python benchmarks/tolls_agree.py a.json b.json

Of each toll how many readings are farther apart than promised, and the farthest, larger over smaller; promised are 5 %
for launches, copies from 1 MiB and matmul, 15 % elsewhere. The last line of stdout is one JSON object; the exit code is
1 where a reading is farther apart than promised or in one of the files only.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from cctrain.errors import RequestError
from cctrain.tolls.diff import MODE, check_comparable
from cctrain.tolls.record import Reading, TollsRecord, read_tolls
from cctrain.tolls.table import describe, number

CLOSE, LOOSE = 0.05, 0.15
_CLOSE = ("launch_pipelined", "launch_wait", "launch_call", "launch_busy", "matmul")
_LARGE_COPY_BYTES = 1 << 20


def bar(reading: Reading) -> float:
    """How far two readings of it may be apart."""
    num_bytes = reading.conditions.get("bytes")
    is_large_copy = reading.name == "copy" and isinstance(num_bytes, int) and num_bytes >= _LARGE_COPY_BYTES
    return CLOSE if reading.name in _CLOSE or is_large_copy else LOOSE


def apart(one: TollsRecord, other: TollsRecord) -> list[tuple[Reading, Reading, float]]:
    """Readings of the same thing, and by which fraction the larger is above the smaller."""
    others = {reading.key: reading for reading in other.readings}
    pairs = [(reading, others[reading.key]) for reading in one.readings if reading.key in others]
    return [(a, b, max(a.value, b.value) / max(1e-9, min(a.value, b.value)) - 1) for a, b in pairs]


def main() -> int:
    """Print the worst of each toll. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs=2, type=Path, metavar="FILE")
    try:
        one, other = (read_tolls(path) for path in parser.parse_args().files)
        check_comparable(one, other, [MODE])
    except RequestError as error:
        parser.error(str(error))
    found = apart(one, other)
    by_kind: dict[tuple[str, float], list[tuple[Reading, Reading, float]]] = {}
    for entry in found:
        by_kind.setdefault((entry[0].name, bar(entry[0])), []).append(entry)
    for (name, allowed), kind in by_kind.items():
        a, b, distance = max(kind, key=lambda entry: entry[2])
        num_over = sum(entry[2] > allowed for entry in kind)
        verdict = f"OVER ({num_over} of {len(kind)})" if num_over else f"ok ({len(kind)})"
        values = f"{number(a.value)} and {number(b.value)} {a.unit}"
        print(f"{verdict:15} {name:22} {distance:6.1%} of {allowed:.0%}   {values} ({describe(a.conditions)})")
    over = [f"{a.name} ({describe(a.conditions)})" for a, _, distance in found if distance > bar(a)]
    num_single = len(one.readings) + len(other.readings) - 2 * len(found)
    print(json.dumps({"num_readings": len(found), "num_in_one_only": num_single, "over": over}))
    return 1 if over or num_single or not found else 0


if __name__ == "__main__":
    sys.exit(main())
