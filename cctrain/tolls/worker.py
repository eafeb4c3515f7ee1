"""What measures: `python -m cctrain.tolls.worker [--tolls NAME] EVENTS FAMILY...`, or the same as a rank of torchrun.

Rank 0 appends a line to EVENTS when a family begins, and one with its readings when it is over; a rank whose family
raises says so and ends. The parent then starts another for the families that are left: an error of CUDA's stays with
the process it came up in. With `--tolls` the process must have been started with the injection library.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

from cctrain.errors import one_line
from cctrain.processes import die_with_parent
from cctrain.redaction import redacted
from cctrain.samples import SampleFile
from cctrain.tolls.families import HOST, Family
from cctrain.tolls.sampling import Switch


def measure_families(
    families: Iterable[tuple[str, Callable[[], Family]]], events: SampleFile, rank: int, switch: Switch | None = None
) -> int:
    """Measure one after the other, those that call CUDA with and without tolls where there is a `switch`. Returns the
    exit code, 1 as soon as one fails."""

    def say(event: str, **facts: Any) -> None:
        if rank == 0 or event == "failed":
            events.write({"event": event, **facts})

    for name, load in families:
        say("begin", family=name)
        try:
            family = load()
            why = family.can_run()
            readings = [] if why else family.measure(None if name in HOST else switch)
        except BaseException as error:  # noqa: BLE001 - whatever it is, the others can still be measured
            traceback.print_exc()
            say("failed", family=name, why=redacted(f"{type(error).__name__}: {one_line(error)}")[:300])
            return 1
        if why:
            say("waived", family=name, why=why)
        else:
            say("measured", family=name, readings=[dataclasses.asdict(reading) for reading in readings])
    return 0


def _load(name: str) -> Family:
    family = cast("Family", importlib.import_module(f"cctrain.tolls.{name}"))
    if name not in HOST and not family.can_run():
        from cctrain.tolls import device

        device.warm_up()
    return family


def _switch(tolls: str) -> Switch:
    from cctrain.emulation import injector
    from cctrain.emulation.profile import load_profile

    profile, attached = load_profile(tolls), injector.attached()
    assert attached, "started without the injection library"
    return lambda is_tolled: attached.set_tolls(profile if is_tolled else None)


def _main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tolls")
    parser.add_argument("events", type=Path)
    parser.add_argument("names", nargs="+")
    flags = parser.parse_args(arguments)
    rank = int(os.environ.get("RANK", "0"))
    if "LOCAL_RANK" in os.environ:
        import torch

        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    families = ((name, partial(_load, name)) for name in flags.names)
    return measure_families(families, SampleFile(flags.events), rank, _switch(flags.tolls) if flags.tolls else None)


if __name__ == "__main__":
    die_with_parent()
    code = _main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # NCCL's own exit may wait for ever where a graph holds its collectives
