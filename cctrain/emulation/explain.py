"""Where the emulated loss comes from: what each class of tolls costs a step.

A class's cost is the mean of what it adds alone to a plain step and what its absence takes from a tolled one: the first
and the last place that it can have in the queue of causes, which are not the same where tolls hide one another or hide
behind the GPU. What the costs do not add up to is unexplained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from cctrain import ratios
from cctrain.emulation.arms import only, without
from cctrain.emulation.blocks import ALL, OFF
from cctrain.emulation.rounds import Blocks, seconds

Injected = Mapping[str, float]
"""Class -> seconds injected per tolled step, over the threads of one rank."""


def explain(rounds: Sequence[Blocks], classes: Sequence[str], injected_s: Injected) -> dict[str, Any] | None:
    """The record's `explain`: seconds per step with 95 % t intervals over the rounds; None where there is no round.

    `host_bound_share` is how much of what was injected shows in the step; the rest ran while the GPU was busy anyway.
    """
    if not rounds:
        return None
    times = [{arm: seconds(block) / len(block) for arm, block in blocks.items()} for blocks in rounds]

    def estimate(cost: Callable[[Mapping[str, float]], float]) -> tuple[float, list[float] | None]:
        values = np.array([cost(took) for took in times])
        if len(values) < 2:
            return float(values[0]), None
        middle, half = (float(number) for number in ratios.paired(values))
        return middle, [middle - half, middle + half]

    def cost_of(name: str) -> Callable[[Mapping[str, float]], float]:
        return lambda took: (took[only(name)] - took[OFF] + took[ALL] - took[without(name)]) / 2

    costs = {name: cost_of(name) for name in classes}
    total_s, total_ci95 = estimate(lambda took: took[ALL] - took[OFF])
    rest_s, rest_ci95 = estimate(lambda took: took[ALL] - took[OFF] - sum(cost(took) for cost in costs.values()))
    rows = []
    for name in classes:
        cost_s, ci95 = estimate(costs[name])
        alone_s, _ = estimate(lambda took, name=name: took[only(name)] - took[OFF])  # type: ignore[misc]
        left_out_s, _ = estimate(lambda took, name=name: took[ALL] - took[without(name)])  # type: ignore[misc]
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
