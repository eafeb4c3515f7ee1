"""The keep ratio of one emulated run: throughput of its tolled blocks over that of the plain ones beside them."""

from __future__ import annotations

from collections.abc import Sequence

from cctrain import ratios
from cctrain.emulation.blocks import ALL, OFF
from cctrain.emulation.rounds import Blocks, seconds, step_s
from cctrain.records import KeepRatio


def keep_ratio(rounds: Sequence[Blocks]) -> KeepRatio | None:
    """Of the pairs of blocks in `rounds`; None where there is none. Two blocks of one pair stand within seconds of each
    other, and share what the machine was doing then."""
    if not rounds:
        return None
    kept = [_rate(blocks, ALL) / _rate(blocks, OFF) for blocks in rounds]
    value, ci95 = ratios.geometric_mean(kept)
    added = [step_s(blocks[OFF]) * (1 / ratio - 1) for blocks, ratio in zip(rounds, kept, strict=True)]
    added_s, added_ci95 = ratios.mean(added)
    return KeepRatio(value=value, ci95=ci95, num_pairs=len(rounds), added_s=added_s, added_ci95=added_ci95)


def _rate(blocks: Blocks, arm: str) -> float:
    return sum(step.padded_tokens for step in blocks[arm]) / seconds(blocks[arm])
