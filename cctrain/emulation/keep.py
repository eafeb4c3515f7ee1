"""The keep ratio of one emulated run: throughput of its tolled blocks over that of the plain ones beside them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from cctrain import ratios
from cctrain.emulation.blocks import ALL, OFF
from cctrain.emulation.rounds import Blocks, seconds
from cctrain.records import KeepRatio


def keep_ratio(rounds: Sequence[Blocks]) -> KeepRatio | None:
    """Of the pairs of blocks in `rounds`; None where there is none. Two blocks of one pair stand within seconds of each
    other, and share what the machine was doing then."""
    if not rounds:
        return None
    logs = np.array([math.log(_rate(blocks, ALL) / _rate(blocks, OFF)) for blocks in rounds])
    if len(logs) < 2:
        return KeepRatio(value=math.exp(logs[0]), ci95=None, num_pairs=1)
    middle, half = (float(number) for number in ratios.paired(logs))
    return KeepRatio(
        value=math.exp(middle), ci95=(math.exp(middle - half), math.exp(middle + half)), num_pairs=len(logs)
    )


def _rate(blocks: Blocks, arm: str) -> float:
    return sum(step.padded_tokens for step in blocks[arm]) / seconds(blocks[arm])
