"""The verb tolls: measure the building blocks of what CC costs, or take the difference of two measurements.

    python -m cctrain tolls --out off.json                    on a machine with CC off, some 90 s on a GPU
    python -m cctrain tolls --out on.json                     on the same kind of machine with CC on
    python -m cctrain tolls --diff off.json on.json --out profile.json
    python -m cctrain tolls --only launch copies              some families
    python -m cctrain tolls --tolls b300 --out b300.json      with and without the tolls of a profile, emulated;
                                                              what calls CUDA takes twice as long

Each family is measured by three processes in turn; the value is what the least disturbed of them took. A table, and as
the last line of stdout one JSON object. A family that this machine cannot measure is waived; one that raises, crashes
or hangs is named as failed, the others are measured all the same, and the exit code is 4.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from cctrain import launcher, rundir
from cctrain.commands.flags import Parser
from cctrain.config import CcMode
from cctrain.emulation.injector import check_not_inside, process_environment
from cctrain.emulation.profile import emulated_note, load_profile
from cctrain.errors import PlatformError, RequestError, RunError
from cctrain.nearest import did_you_mean
from cctrain.platform import cc, gpu, machine
from cctrain.processes import take_stops_as_ctrl_c
from cctrain.records import finite, to_json
from cctrain.tolls import child, families
from cctrain.tolls.diff import IDENTITY, MODE, check_comparable, differences, who_pays
from cctrain.tolls.profile import control_warning, emulation_profile
from cctrain.tolls.record import Facts, TollsRecord, read_tolls


def run(arguments: list[str]) -> int:
    """Measure or take a difference, as `arguments` say. Returns the exit code; raises CctrainError."""
    flags = _parse(arguments)
    return _diff(flags) if flags.diff else _measure(flags)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser("tolls", __doc__)
    parser.add_argument("--out", type=Path, help="the file to write (tolls.json; with --diff, none)")
    parser.add_argument("--only", nargs="+", metavar="FAMILY", help=f"measure some of {', '.join(families.ALL)}")
    parser.add_argument("--tolls", metavar="NAME|FILE", help="measure under the tolls of a profile, emulated")
    parser.add_argument("--diff", nargs=2, type=Path, metavar=("OFF", "ON"), help="two files, CC off and on")
    parser.add_argument("--name", help="with --diff: the profile's name (the ON file's)")
    parser.add_argument("--allow", nargs="+", default=[], metavar="KEY", help="with --diff: what may differ")
    flags = parser.parse_args(arguments)
    for given, allowed, what in ((flags.only, families.ALL, "--only"), (flags.allow, (MODE, *IDENTITY), "--allow")):
        for name in given or ():
            if name not in allowed:
                meant = did_you_mean(name, allowed)
                raise RequestError(f"{what} {name}: allowed is {', '.join(allowed)}.{meant}")
    if flags.diff and (flags.only or flags.tolls):
        raise RequestError("--only and --tolls are for measuring, and --diff measures nothing: give one or the other")
    if not flags.diff and (flags.allow or flags.name):
        raise RequestError("--allow and --name go with --diff OFF ON")
    if not flags.diff:
        flags.out = flags.out or Path("tolls.json")
    folder = flags.out and flags.out.parent
    if flags.out and (flags.out.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK)):
        raise RequestError(f"--out {flags.out}: no file can be written there")
    return flags


def _diff(flags: argparse.Namespace) -> int:
    off, on = (read_tolls(path) for path in flags.diff)
    if flags.out and any(path.resolve() == flags.out.resolve() for path in flags.diff):
        raise RequestError(f"--out {flags.out} would replace one of the two files")
    check_comparable(off, on, flags.allow)
    tolls = differences(off, on)
    profile = emulation_profile(flags.name or flags.diff[1].stem, off, on, tolls)
    from cctrain.tolls import table

    table.print_differences(tolls, (off.mode, on.mode))
    num_single = len(off.readings) + len(on.readings) - 2 * len(tolls)
    warnings = [f"{num_single} readings are in one of the files only"] if num_single else []
    for warning in filter(None, [*warnings, who_pays(tolls), control_warning(profile)]):
        print(f"note: {warning}", file=sys.stderr)
    if flags.out:
        _write(flags.out, json.dumps(finite(profile), allow_nan=False, indent=1) + "\n")
    print(json.dumps(finite({"out": flags.out and str(flags.out), **profile}), allow_nan=False))
    return 0


def _measure(flags: argparse.Namespace) -> int:
    check_not_inside(os.environ, "with --tolls NAME")
    gpus = gpu.observe()
    seen = machine.observe(gpus, launcher.rank_environment(is_cpu=False))
    problem = cc.problem(gpus.cc)
    if problem:
        print(f"note: the mode counts as unknown: {problem}", file=sys.stderr)
    profile = load_profile(flags.tolls) if flags.tolls else None
    if profile:
        cc.observed_mode(CcMode.emulated, gpus.cc)
        os.environ |= process_environment(None)  # for the processes that measure; this one never calls CUDA
    names = tuple(name for name in families.ALL if not flags.only or name in flags.only)
    from cctrain.tolls import table

    # A scheduler's SIGTERM and a closed terminal leave as little behind as a Ctrl-C.
    take_stops_as_ctrl_c()
    begin = time.monotonic()
    try:
        with table.Progress(names) as progress:
            outcome = child.measure(names, len(gpus.names), progress.show, flags.tolls)
    except KeyboardInterrupt:
        _fail("stopped by Ctrl-C, SIGTERM or SIGHUP: nothing was written")
    if not (outcome.readings or outcome.failed):
        why = "; ".join(dict.fromkeys(outcome.waived.values()))
        raise PlatformError(f"nothing of what was asked for can be measured here: {', '.join(names)} {why}")
    record = TollsRecord(
        mode=CcMode.emulated.value if profile else cc.seen_mode(gpus.cc),
        tolls={"name": profile.name, "sha256": profile.sha256} if profile else None,
        identity=_identity(seen),
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        duration_s=round(time.monotonic() - begin, 1),
        readings=tuple(outcome.readings),
        waived=outcome.waived,
        failed=outcome.failed,
        machine=seen,
    )
    _write(flags.out, to_json(record))
    table.print_tolls(record)
    facts = {"out": str(flags.out), "mode": record.mode, "num_readings": len(record.readings)}
    facts |= {"emulated": emulated_note()} if profile else {}
    facts |= {"duration_s": record.duration_s, "waived": record.waived, "failed": record.failed}
    if record.failed:
        print(outcome.log, end="", file=sys.stderr)
        _fail("; ".join(f"{family} failed: {why}" for family, why in record.failed.items()), **facts)
    print(json.dumps({**facts, "status": "complete", "exit_code": 0}))
    return 0


def _identity(seen: dict[str, Any]) -> Facts:
    names = seen["gpus"]["names"]
    return {
        "gpu": ", ".join(sorted(set(names))) or None,
        "num_gpus": len(names),
        "driver": seen["versions"]["driver"],
        "cpu": seen["host"]["cpu"],
        "torch": seen["versions"]["torch"],
        "cctrain": seen["versions"]["cctrain"],
    }


def _write(path: Path, text: str) -> None:
    try:
        rundir.write_text(path, text)
    except OSError as error:
        _fail(f"{path} cannot be written ({error})")


def _fail(why: str, **facts: Any) -> NoReturn:
    """The last line and the error of a run that did not end well."""
    line = {"error": why, **facts, "status": "partial", "exit_code": RunError.exit_code}
    print(json.dumps(line))
    raise RunError(why)
