"""The keep ratio of one emulated run: throughput of its tolled blocks over that of the plain ones beside them."""

from __future__ import annotations

from collections.abc import Sequence

from cctrain import ratios
from cctrain.emulation.blocks import ALL, OFF
from cctrain.emulation.rounds import Blocks, seconds, step_s
from cctrain.records import KeepRatio


def keep_ratio(rounds: Sequence[Blocks]) -> KeepRatio | None:
    """Of the pairs of blocks in `rounds`; None where there is none. Two blocks of one pair stand within seconds of each
    other (within a round, where a run is explained), and share what the machine was doing then."""
    if not rounds:
        return None
    value, ci95 = ratios.geometric_mean([_rate(blocks, ALL) / _rate(blocks, OFF) for blocks in rounds])
    took = [[step_s(blocks[arm], like=blocks[OFF]) for arm in (OFF, ALL)] for blocks in rounds]
    added_s, added_ci95 = ratios.mean([tolled - plain for plain, tolled in took])
    return KeepRatio(value=value, ci95=ci95, num_pairs=len(rounds), added_s=added_s, added_ci95=added_ci95)


def _rate(blocks: Blocks, arm: str) -> float:
    return sum(step.padded_tokens for step in blocks[arm]) / seconds(blocks[arm])
