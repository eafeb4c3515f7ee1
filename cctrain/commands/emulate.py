"""The verb emulate: run any CUDA program as if confidential computing (CC) were on, and count what it crosses.

    python -m cctrain emulate --tolls b300 -- python my_training.py     under the tolls of a profile
    python -m cctrain emulate -- ./my_program                           no tolls: only count
    python -m cctrain emulate --tolls profile.json -- torchrun ...      every process of it is met

The program's launches, copies, waits... take as much longer as the profile says, on a GPU without CC. A table of what
each process crossed, and as the last line of stdout one JSON object; tolls that the program sets itself are not told
apart from those of --tolls. The exit code is the program's own; 2 for a wrong profile, 3 where emulation cannot be had
(CC really on, no compiler, no CUPTI, a profiler in its place). A profiler inside the program shows only then: it runs
to its end, `refused` says in which process and why, and 3 replaces a 0.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cctrain import launcher
from cctrain.commands.flags import Parser
from cctrain.config import CcMode
from cctrain.emulation.arms import CUPTI, unpaid_note
from cctrain.emulation.injector import has_paid, left_behind, process_environment, refusals
from cctrain.emulation.profile import emulated_note, load_profile
from cctrain.errors import PlatformError, RequestError
from cctrain.platform import cc, gpu
from cctrain.processes import STOPS
from cctrain.records import finite


def run(arguments: list[str]) -> int:
    """Run the command that stands after `--`. Returns its exit code; raises CctrainError."""
    parser = Parser("emulate", __doc__)
    parser.usage = "python -m cctrain emulate [--tolls NAME|FILE] -- COMMAND ..."
    parser.add_argument("--tolls", metavar="NAME|FILE", help="b300, hopper, h100 or a file; without, only count")
    own, command = _split(arguments)
    _, rest = parser.parse_known_args(own)
    if rest and not command and not rest[0].startswith("-"):
        raise RequestError(f"emulate: got {' '.join(rest)} without -- before it: {parser.usage}")
    flags = parser.parse_args(own)
    if not command:
        raise RequestError(f"no program to run: {parser.usage}")
    if not shutil.which(command[0]):
        raise RequestError(f"{command[0]}: no such program, or none that may be executed")
    profile = load_profile(flags.tolls) if flags.tolls else None
    cc.observed_mode(CcMode.emulated, gpu.observe().cc)
    unpaid = unpaid_note(profile, CUPTI) if profile else None
    if unpaid:
        print(f"note: {unpaid}", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="cctrain-crossings-") as folder:
        injected = process_environment(profile, Path(folder))
        code = _run(command, os.environ | launcher.NO_MULTICAST | injected)
        crossings, refused = left_behind(Path(folder)), refusals(Path(folder))
    code = 128 - code if code < 0 else code
    if refused and not code:
        code = PlatformError.exit_code
    from cctrain.report.crossings import print_crossings

    print_crossings(crossings, profile)
    tolls = {"name": profile.name, "sha256": profile.sha256} if profile else None
    processes = [{"pid": pid, **counts} for pid, counts in crossings.items()]
    found: dict[str, Any] = {"exit_code": code, "tolls": tolls, "processes": processes, "refused": refused}
    if (profile and crossings) or any(map(has_paid, crossings.values())):
        found |= {"mode": CcMode.emulated.value, "emulated": emulated_note()}
    print(json.dumps(finite(found)))
    return code


def _run(command: list[str], environment: Mapping[str, str]) -> int:
    """Run the program to its end. A stop is the program's to heed: it may have something to save, and is counted to its
    end. A terminal's Ctrl-C reaches it without us."""
    started: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, _: object) -> None:
        for process in started if number != signal.SIGINT else ():
            process.send_signal(number)

    stops = [stop for stop in STOPS if signal.getsignal(stop) != signal.SIG_IGN]
    before = {stop: signal.signal(stop, pass_on) for stop in stops}
    try:
        started.append(subprocess.Popen(command, env=environment))
        return started[0].wait()
    except OSError as error:
        raise RequestError(f"{command[0]} cannot be run: {error.strerror}") from error
    finally:
        for stop, handler in before.items():
            signal.signal(stop, handler)


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Our own, and the program with its own."""
    at = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:at], arguments[at + 1 :]
