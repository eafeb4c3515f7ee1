"""Emulation in a rank of a run: set up as its config.json says."""

from __future__ import annotations

import os
from typing import Any

from cctrain.emulation.arms import arms
from cctrain.emulation.blocks import schedule
from cctrain.emulation.injector import attached, process_environment
from cctrain.emulation.profile import parse_profile
from cctrain.emulation.switch import Tolls, TollSwitch


def is_wanted(config: dict[str, Any]) -> bool:
    """Whether crossings are counted in this run."""
    return config["tolls"] is not None or bool(config["measure"]["crossings"])


def inject() -> None:
    """Have the driver load the injection library into this process, which has made no CUDA call yet. Raises
    PlatformError where it cannot be built."""
    os.environ |= process_environment(None)


def toll_switch(config: dict[str, Any], world: int) -> TollSwitch | None:
    """What puts this run's steps under their tolls; None where nothing is counted. Raises PlatformError where the
    library is not at work; CUDA must be initialised."""
    if not is_wanted(config):
        return None
    tolls = _tolls()
    if config["tolls"] is None:
        return TollSwitch(tolls, None, (), 0)
    profile, measure = parse_profile(config["tolls"]), config["measure"]
    slots = schedule(
        int(measure["steps"]),
        arms(
            profile,
            is_explained=config["cc"]["explain"],
            num_ranks=world,
            counted_by=tolls.counted_by,
            has_graphs=config["step"]["kind"] != "stock",
        ),
        config["cc"]["blocks"],
    )
    return TollSwitch(tolls, profile, slots, measure["warmup"])


def _tolls() -> Tolls:
    injector = attached()
    if injector:
        injector.check()
        return injector
    from cctrain.emulation.operators import OperatorTolls

    operators = OperatorTolls()
    operators.__enter__()  # for good: the process trains and ends
    return operators
