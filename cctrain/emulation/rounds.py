"""Steps of an emulated run by round: what each arm's block took in it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from cctrain.records import StepRecord

Blocks = Mapping[str, list[StepRecord]]
"""Arm -> its measured steps in one round."""


def whole_rounds(steps: Sequence[StepRecord], arms: Collection[str], first_steps: Mapping[str, int]) -> list[Blocks]:
    """The rounds in which every one of the run's `arms` has its block, and all of the block's measured steps are
    steady: from `first_steps` of its arm on, where that is given."""
    rounds: dict[int, dict[str, list[StepRecord]]] = {}
    for step in steps:
        if step.arm and step.block is not None and not step.is_warmup:
            rounds.setdefault(step.block // len(arms), {}).setdefault(step.arm, []).append(step)
    return [
        blocks
        for _, blocks in sorted(rounds.items())
        if set(blocks) == set(arms) and all(blocks[arm][0].step >= first for arm, first in first_steps.items())
    ]


def seconds(block: Sequence[StepRecord]) -> float:
    """What the rank that took longest for the block took for it: maxima of single steps would add up to more."""
    return max(map(sum, zip(*(step.rank_step_time_s for step in block), strict=True)))


def step_s(block: Sequence[StepRecord], *, like: Sequence[StepRecord]) -> float:
    """Seconds of a step at the block's rate, with as many padded tokens as steps of `like` have on average."""
    tokens, wanted = (sum(step.padded_tokens for step in each) for each in (block, like))
    return seconds(block) / tokens * wanted / len(like)
