"""The verb tolls: measure the building blocks of what CC costs, or take the difference of two measurements.

    python -m cctrain tolls --out off.json                    on a machine with CC off, about a minute
    python -m cctrain tolls --out on.json                     on the same kind of machine with CC on
    python -m cctrain tolls --diff off.json on.json --out profile.json
    python -m cctrain tolls --only launch copies              some families

A table, and as the last line of stdout one JSON object. A family that this machine cannot measure is waived; one that
raises, crashes or hangs is named as failed, the others are measured all the same, and the exit code is 4.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from cctrain import rundir
from cctrain.config import CcMode
from cctrain.errors import PlatformError, RequestError, RunError
from cctrain.platform import cc, gpu, host, versions
from cctrain.records import finite, to_json
from cctrain.request.nearest import did_you_mean
from cctrain.tolls import child, families
from cctrain.tolls.diff import IDENTITY, MODE, check_comparable, differences
from cctrain.tolls.profile import control_warning, emulation_profile
from cctrain.tolls.record import Facts, TollsRecord, read_tolls


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise RequestError(f"tolls: {message}")


def run(arguments: list[str]) -> int:
    """Measure or take a difference, as `arguments` say. Returns the exit code; raises CctrainError."""
    flags = _parse(arguments)
    return _diff(flags) if flags.diff else _measure(flags)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = _Parser(prog="python -m cctrain tolls", description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, help="the file to write (tolls.json; with --diff, none)")
    parser.add_argument("--only", nargs="+", metavar="FAMILY", help=f"measure some of {', '.join(families.ALL)}")
    parser.add_argument("--diff", nargs=2, type=Path, metavar=("OFF", "ON"), help="two files, CC off and on")
    parser.add_argument("--name", help="with --diff: the profile's name (the ON file's)")
    parser.add_argument("--allow", nargs="+", default=[], metavar="KEY", help="with --diff: what may differ")
    flags = parser.parse_args(arguments)
    for given, allowed, what in ((flags.only, families.ALL, "--only"), (flags.allow, (MODE, *IDENTITY), "--allow")):
        for name in given or ():
            if name not in allowed:
                meant = did_you_mean(name, allowed)
                raise RequestError(f"{what} {name}: allowed is {', '.join(allowed)}.{meant}")
    if flags.diff and flags.only:
        raise RequestError("--only chooses what is measured, --diff measures nothing: give one of them")
    if not flags.diff and (flags.allow or flags.name):
        raise RequestError("--allow and --name go with --diff OFF ON")
    if flags.out:
        _check_writable(flags.out)
    return flags


def _check_writable(path: Path) -> None:
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise RequestError(f"--out {path}: no file can be written there")


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
    for warning in filter(None, [*warnings, control_warning(profile)]):
        print(f"note: {warning}", file=sys.stderr)
    if flags.out:
        _write(flags.out, json.dumps(finite(profile), allow_nan=False, indent=1) + "\n")
    print(json.dumps(finite({"out": flags.out and str(flags.out), **profile}), allow_nan=False))
    return 0


def _measure(flags: argparse.Namespace) -> int:
    out = flags.out or Path("tolls.json")
    _check_writable(out)
    # A scheduler's SIGTERM and a closed terminal leave as little behind as a Ctrl-C.
    for stop in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(stop) is not signal.SIG_IGN:
            signal.signal(stop, signal.default_int_handler)
    gpus = gpu.observe()
    names = tuple(name for name in families.ALL if not flags.only or name in flags.only)
    from cctrain.tolls import table

    try:
        with table.Progress(names) as progress:
            outcome = child.measure(names, len(gpus.names), progress.show)
    except KeyboardInterrupt:
        _fail("stopped by Ctrl-C, SIGTERM or SIGHUP: nothing was written")
    record = TollsRecord(
        mode=_mode(gpus),
        identity=_identity(gpus),
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        readings=tuple(outcome.readings),
        waived=outcome.waived,
        failed=outcome.failed,
        machine={
            "gpus": dataclasses.asdict(gpus),
            "host": host.observe(child.environment()),
            "versions": versions.package_versions(),
        },
    )
    _write(out, to_json(record))
    table.print_tolls(record)
    facts = {"out": str(out), "mode": record.mode, "num_readings": len(record.readings), "waived": record.waived}
    if record.failed:
        print(outcome.log, end="", file=sys.stderr)
        why = "; ".join(f"{family} failed: {why}" for family, why in record.failed.items())
        _fail(why, **facts, failed=record.failed)
    print(json.dumps({**facts, "failed": {}, "status": "complete", "exit_code": 0}))
    return 0


def _mode(gpus: gpu.Gpus) -> str:
    """What the machine is seen to be; unknown, with a note, where no mode should be taken for granted."""
    try:
        return cc.observed_mode(CcMode.auto, gpus.cc)
    except PlatformError as error:
        print(f"note: the mode counts as unknown. {str(error).removeprefix('cc=auto: ')}", file=sys.stderr)
        return cc.observed_mode(CcMode.unverified, gpus.cc)


def _identity(gpus: gpu.Gpus) -> Facts:
    installed = versions.package_versions()
    return {
        "gpu": ", ".join(sorted(set(gpus.names))) or None,
        "num_gpus": len(gpus.names),
        "driver": gpus.driver,
        "cpu": host.observe({})["cpu"],
        "torch": installed["torch"],
        "cctrain": installed["cctrain"],
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
