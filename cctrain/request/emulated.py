"""What cc=emulated wants beside it: a toll profile, and enough steps for its blocks."""

from __future__ import annotations

import re
from typing import Any

from cctrain.config import CcMode, Config, MeasureKind, StepKind
from cctrain.emulation.arms import arms
from cctrain.emulation.blocks import fewest_steps
from cctrain.emulation.profile import load_profile, parse_profile
from cctrain.errors import RequestError


def take_tolls(arguments: list[str]) -> tuple[list[str], dict[str, Any] | None]:
    """The arguments without `tolls=NAME|FILE`, and that profile's content. Raises RequestError."""
    for argument in arguments:
        if re.match(r"[+~]*tolls\b", argument) and not argument.startswith("tolls="):
            raise RequestError(
                f"{argument}: allowed is tolls=NAME|FILE; for other numbers, copy a profile and change it"
            )
    given = [argument for argument in arguments if argument.startswith("tolls=")]
    if len(given) > 1:
        raise RequestError(f"tolls is given {len(given)} times: {', '.join(given)}")
    profile = load_profile(given[0].removeprefix("tolls=")).to_dict() if given else None
    return [argument for argument in arguments if argument not in given], profile


def check_emulated(config: Config) -> None:
    """Raises RequestError where cc=emulated, tolls= and measure= do not go together."""
    if config.cc.mode is not CcMode.emulated:
        if config.tolls:
            raise RequestError(f"tolls= is read with cc=emulated only, got cc={config.cc.mode.value}")
        return
    measure, blocks = config.measure, config.cc.blocks
    if not config.tolls:
        raise RequestError(
            "cc=emulated needs the tolls to inject: add tolls=b300, tolls=hopper, tolls=h100 or tolls=FILE"
        )
    if measure.is_auto:
        raise RequestError("measure.steps=auto does not go with cc=emulated, whose blocks are laid out before the run")
    if measure.kind is MeasureKind.seed:
        raise RequestError("measure=seed does not go with cc=emulated: its figure is one over tolled and plain steps")
    profile, has_graphs = parse_profile(config.tolls), config.step.kind is not StepKind.stock
    num_arms = len(arms(profile, is_explained=config.cc.explain, num_ranks=_SEVERAL, has_graphs=has_graphs))
    fewest = fewest_steps(num_arms, blocks)
    if measure.most_steps < fewest:
        from cctrain import stats  # a third of a second, spent on an error alone

        most = measure.most_steps // fewest_steps(num_arms, 1)
        is_enough = most >= 2 and fewest_steps(num_arms, most, stats.MIN_STEPS) <= measure.most_steps
        way_out = f", or cc.blocks={most}" if is_enough else ""
        judged = fewest_steps(num_arms, blocks, stats.MIN_STEPS)
        verdict = f" ({judged} to be told steady)" if judged > fewest else ""
        raise RequestError(
            f"measure.steps={measure.steps} is too few for cc.blocks={blocks} rounds of {num_arms} blocks of 4 steps "
            f"(the first 2 of each settle): allowed is {fewest} or more{verdict}{way_out}"
        )


_SEVERAL = 2
"""Ranks, and so collectives, for all that is known before the launch."""
