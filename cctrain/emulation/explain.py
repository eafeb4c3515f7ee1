"""Where the emulated loss comes from: what each class of tolls costs a step.

The arms are an experiment whose factors are the classes: none is paid, each alone, all but each, all. A class's cost is
its effect in the sum of effects that fits a round's arms best (least squares). Each arm has its opposite, so what only
two classes together cost is shared between them (a fold-over design keeps main effects clear of interactions of two:
Box, Hunter and Hunter, Statistics for Experimenters). What the costs do not add up to is unexplained: three and more
classes that hide one another or behind the GPU, of which the costs take up a part, and noise. It is a share of the one
difference between the arms that no sum of effects fits, so it tells that there is such a thing, not how much; it takes
three classes at least.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cctrain import ratios
from cctrain.emulation.arms import only, paid, without
from cctrain.emulation.blocks import ALL, OFF
from cctrain.emulation.rounds import Blocks, step_s

Times = Mapping[str, float]
"""Arm -> seconds a step in one round."""
Injected = Mapping[str, float]
"""Class -> seconds injected per tolled step, over the threads of one rank."""
_FEWEST_WITH_A_REST = 3


def explain(rounds: Sequence[Blocks], classes: Sequence[str], injected_s: Injected) -> dict[str, Any] | None:
    """The record's `explain`: seconds per step with 95 % t intervals over the rounds; None where there is no round. Of
    steps with the tokens of the round's plain ones, as `keep_ratio.added_s` is, so that longer samples are no toll.

    `host_bound_share` is how much of what was injected shows in the step; the rest ran while the GPU was busy anyway.
    `unexplained_s` is None of fewer than three classes, of which no rest but noise can be left.
    """
    if not rounds:
        return None
    times: list[Times] = [{arm: step_s(block, like=blocks[OFF]) for arm, block in blocks.items()} for blocks in rounds]
    fits = [_costs(took, classes) for took in times]
    total_s, total_ci95 = ratios.mean([took[ALL] - took[OFF] for took in times])
    rests = [took[ALL] - took[OFF] - sum(fit) for took, fit in zip(times, fits, strict=True)]
    rest_s, rest_ci95 = ratios.mean(rests) if len(classes) >= _FEWEST_WITH_A_REST else (None, None)
    rows = []
    for index, name in enumerate(classes):
        cost_s, ci95 = ratios.mean([fit[index] for fit in fits])
        alone_s, _ = ratios.mean([took[only(name)] - took[OFF] for took in times])
        left_out_s, _ = ratios.mean([took[ALL] - took[without(name)] for took in times])
        row = {"name": name, "alone_s": alone_s, "left_out_s": left_out_s, "cost_s": cost_s, "ci95": ci95}
        rows.append({**row, "injected_s": injected_s.get(name, 0.0)})
    injected = sum(injected_s.values())
    return {
        "classes": rows,
        "num_rounds": len(rounds),
        "total_s": total_s,
        "total_ci95": total_ci95,
        "unexplained_s": rest_s,
        "unexplained_ci95": rest_ci95,
        "injected_s": injected,
        "host_bound_share": total_s / injected if injected else None,
    }


def _costs(took: Times, classes: Sequence[str]) -> list[float]:
    arms = (OFF, ALL, *map(only, classes), *map(without, classes))
    design = [[1.0, *(float(name in paid(arm, classes)) for name in classes)] for arm in arms]
    fit, *_ = np.linalg.lstsq(np.array(design), np.array([took[arm] for arm in arms]))
    return [float(cost) for cost in fit[1:]]
